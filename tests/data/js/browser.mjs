// A WebSocket as browsers have it: no headers, so the key is a subprotocol; it offers compression.
const [url, key] = process.argv.slice(2);
const seen = { events: [] };
const socket = new WebSocket(url, [
  "realtime",
  `openai-insecure-api-key.${key}`,
  "openai-beta.realtime-v1",
]);
socket.onopen = () => {
  seen.protocol = socket.protocol;
  seen.extensions = socket.extensions;
  socket.send(JSON.stringify({ type: "response.create" }));
};
socket.onmessage = ({ data }) => {
  const event = JSON.parse(data);
  seen.events.push(event.type);
  if (event.type === "session.created") seen.model = event.session.model;
  if (event.type === "response.done") socket.close(4321, "enough");
};
socket.onerror = () => {
  console.log(JSON.stringify({ ...seen, failed: true }));
  process.exit(); // not every version tells of the close, too
};
socket.onclose = ({ code, wasClean }) => {
  console.log(JSON.stringify({ ...seen, code, wasClean }));
};
