// openai-js: both classes, both surfaces.
import OpenAI, { APIConnectionError, AuthenticationError, AzureOpenAI, NotFoundError, RateLimitError, toFile } from "openai";
import { OpenAIRealtimeWS } from "openai/realtime/ws";
import {
  aliases, barredKey, dated, failure, gateway, gathered, holds, key, run, said, same, unknownAlias, unknownKey, weather,
} from "./reporting.mjs";

const messages = [{ role: "user", content: "ping" }];
const tools = [{ type: "function", function: { name: "weather", parameters: weather } }];
const sound = Buffer.concat([Buffer.from("RIFF"), Buffer.alloc(4096)]);
const picture = Buffer.concat([Buffer.from("\x89PNG\r\n\x1a\n", "latin1"), Buffer.alloc(64)]);
const heard = `Hello from Azure OpenAI! You said: a.wav, ${sound.length} bytes`;

// A way makes a client for an alias; retries are off, since an error is to be seen.
const plain = (base) => (_alias, apiKey, more) => new OpenAI({ baseURL: gateway + base, apiKey, maxRetries: 0, ...more });
const azure = (options) => (alias, apiKey, more) =>
  new AzureOpenAI({ endpoint: gateway, apiVersion: dated, maxRetries: 0, ...options(alias, apiKey), ...more });

const ways = {
  "OpenAI on /v1, async": plain("/v1"),
  "OpenAI on /openai/v1, async": plain("/openai/v1/"),
  "AzureOpenAI, async": azure((_alias, apiKey) => ({ apiKey })),
  "AzureOpenAI with a token, async": azure((_alias, token) => ({ azureADTokenProvider: async () => token })),
  "AzureOpenAI with deployment, async": azure((deployment, apiKey) => ({ apiKey, deployment })),
};

const file = (data, name, type) => toFile(data, name, { type });
const storage = (make) => make(aliases.chat, key, { defaultHeaders: { "x-aisix-model": aliases.chat } });
const chat = (make, more, role = "chat") =>
  make(aliases[role], key).chat.completions.create({ model: aliases[role], messages, ...more });
const text = (chunks) => chunks.map((chunk) => chunk.choices[0]?.delta?.content ?? "").join("");
const refused = (make, model, apiKey = key) =>
  failure(() => make(model, apiKey).chat.completions.create({ model, messages }));

async function embed(make, input, more) {
  const model = aliases.embeddings;
  const answer = await make(model, key).embeddings.create({ model, input, dimensions: 8, ...more });
  same(answer.model, model);
  return answer;
}

async function respond(make, more) {
  const there = make(aliases.chat, key).responses;
  return [there, await there.create({ model: aliases.chat, input: "ping", ...more })];
}

async function hear(make, role, more) {
  const there = make(aliases[role], key).audio.transcriptions;
  return there.create({ model: aliases[role], file: await file(sound, "a.wav", "audio/wav"), ...more });
}

const speak = (make) =>
  make(aliases.speech, key).audio.speech.create({ model: aliases.speech, voice: "alloy", input: "two words" });

const lines = JSON.stringify({ custom_id: "r1", method: "POST", url: "/chat/completions", body: { model: "gpt4o", messages } }) + "\n";

async function upload(make) {
  const client = storage(make);
  const uploaded = await client.files.create({ file: await file(Buffer.from(lines), "in.jsonl", "application/jsonl"), purpose: "batch" });
  return [client, uploaded];
}

async function batch(make) {
  const [client, uploaded] = await upload(make);
  const made = await client.batches.create({
    input_file_id: uploaded.id, endpoint: "/v1/chat/completions", completion_window: "24h",
  });
  return [client, made];
}

// The events of a session until its first response is done.
function conversed(session) {
  const kinds = [];
  return new Promise((done, failed) => {
    session.on("error", failed);
    session.on("session.created", (event) => {
      kinds.push(event.session.model);
      session.send({ type: "response.create" });
    });
    session.on("event", (event) => {
      kinds.push(event.type);
      if (event.type === "response.done") done(kinds);
    });
  }).finally(() => session.close());
}

const operations = {
  async chat(make) {
    const answer = await chat(make);
    same([answer.choices[0].message.content, answer.model, answer.usage.completion_tokens], [said, aliases.chat, 7]);
    holds(answer._request_id, answer);
  },
  async chat_stream(make) {
    const chunks = await gathered(chat(make, { stream: true }));
    same(text(chunks), said);
    same(new Set(chunks.map((chunk) => chunk.model)), new Set([aliases.chat]));
    same(chunks.filter((chunk) => chunk.usage), []);
  },
  async chat_stream_usage(make) {
    const chunks = await gathered(chat(make, { stream: true, stream_options: { include_usage: true } }));
    same(text(chunks), said);
    same([chunks.at(-1).choices, chunks.at(-1).usage.completion_tokens], [[], 7]);
  },
  async chat_stream_raw(make) {
    const response = await chat(make, { stream: true }).asResponse();
    same(response.headers.get("x-request-id"), response.headers.get("x-aisix-request-id"));
    same((await response.text()).trim().split("\n").at(-1), "data: [DONE]");
  },
  async chat_tools(make) {
    const answer = await chat(make, { tools, tool_choice: "required" });
    const [call] = answer.choices[0].message.tool_calls;
    same([call.function.name, call.function.arguments], ["weather", '{"city": "text"}']);
  },
  async chat_tools_stream(make) {
    const chunks = await gathered(chat(make, { tools, tool_choice: "required", stream: true }));
    const calls = chunks.flatMap((chunk) => chunk.choices[0]?.delta?.tool_calls ?? []).map((call) => call.function);
    same(calls.map((call) => call.name ?? "").join(""), "weather");
    same(JSON.parse(calls.map((call) => call.arguments ?? "").join("")), { city: "text" });
  },
  async completions(make) {
    const answer = await make(aliases.chat, key).completions.create({ model: aliases.chat, prompt: "ping" });
    same([answer.choices[0].text, answer.model], [said, aliases.chat]);
  },
  async completions_stream(make) {
    const there = make(aliases.chat, key).completions;
    const chunks = await gathered(there.create({ model: aliases.chat, prompt: "ping", stream: true }));
    same(chunks.map((chunk) => chunk.choices[0]?.text ?? "").join(""), said);
  },
  async embeddings(make) {
    same((await embed(make, ["one", "two"])).data.map((entry) => entry.embedding.length), [8, 8]);
    same((await embed(make, "one", { encoding_format: "float" })).data[0].embedding.length, 8);
  },
  async embeddings_tokens(make) {
    const answer = await embed(make, [[1, 2, 3], [4]]);
    same([answer.data.length, answer.usage.prompt_tokens], [2, 4]);
  },
  async embeddings_base64(make) {
    const answer = await embed(make, "one", { encoding_format: "base64" });
    same(Buffer.from(answer.data[0].embedding, "base64").length, 8 * 4);
  },
  async responses(make) {
    const [, answer] = await respond(make);
    same([answer.output_text, answer.model, answer.usage.output_tokens], [said, aliases.chat, 7]);
  },
  async responses_stream(make) {
    const [, stream] = await respond(make, { stream: true });
    const events = await gathered(stream);
    const deltas = events.filter((event) => event.type === "response.output_text.delta");
    same(deltas.map((event) => event.delta).join(""), said);
    same(events.at(-1).type, "response.completed");
  },
  async responses_retrieve(make) {
    const [there, answer] = await respond(make);
    const again = await there.retrieve(answer.id);
    same([again.id, again.output_text], [answer.id, said]);
  },
  async responses_continue(make) {
    const [, first] = await respond(make);
    const [, second] = await respond(make, { previous_response_id: first.id });
    same(second.previous_response_id, first.id);
    holds(second.usage.input_tokens > first.usage.input_tokens, second.usage);
  },
  async responses_input_items(make) {
    const [there, answer] = await respond(make);
    const items = await gathered(there.inputItems.list(answer.id));
    same(items.map((item) => item.content[0].text), ["ping"]);
  },
  async responses_delete(make) {
    const [there, answer] = await respond(make);
    await there.delete(answer.id);
    const error = await failure(() => there.retrieve(answer.id));
    holds(error instanceof NotFoundError, error);
  },
  async responses_cancel(make) {
    const [there, answer] = await respond(make, { background: true });
    const cancelled = await there.cancel(answer.id);
    same([cancelled.id, cancelled.status], [answer.id, "cancelled"]);
  },
  async images_generate(make) {
    for (const model of [aliases.dall_e, aliases.gpt_image]) {
      const answer = await make(model, key).images.generate({ model, prompt: "a cat" });
      holds(answer.data[0].url || answer.data[0].b64_json, answer);
    }
  },
  async images_generate_stream(make) {
    const model = aliases.gpt_image;
    const stream = make(model, key).images.generate({ model, prompt: "a cat", stream: true, partial_images: 1 });
    const kinds = (await gathered(stream)).map((event) => event.type);
    same(kinds, ["image_generation.partial_image", "image_generation.completed"]);
  },
  async images_edit(make) {
    const model = aliases.gpt_image;
    const image = [await file(picture, "a.png", "image/png"), await file(picture, "b.png", "image/png")];
    const answer = await make(model, key).images.edit({ model, image, prompt: "both" });
    holds(answer.data[0].b64_json, answer);
  },
  async transcribe(make) {
    same((await hear(make, "whisper")).text, heard);
    same((await hear(make, "transcribe")).text, heard);
  },
  async transcribe_text(make) {
    same((await hear(make, "whisper", { response_format: "text" })).trim(), heard);
  },
  async transcribe_srt(make) {
    const subtitles = await hear(make, "whisper", { response_format: "srt" });
    holds(subtitles.startsWith("1\n00:00:00,000 --> "), subtitles);
  },
  async transcribe_stream(make) {
    const events = await gathered(hear(make, "transcribe", { stream: true }));
    same(events.slice(0, -1).map((event) => event.delta).join(""), heard);
    same([events.at(-1).type, events.at(-1).text], ["transcript.text.done", heard]);
  },
  async translate(make) {
    const there = make(aliases.whisper, key).audio.translations;
    const answer = await there.create({ model: aliases.whisper, file: await file(sound, "a.wav", "audio/wav") });
    same(answer.text, heard);
  },
  async speech(make) {
    const answer = await speak(make);
    same(answer.headers.get("content-type"), "audio/mpeg");
    holds((await answer.arrayBuffer()).byteLength > 1000, "too short");
  },
  async speech_stream(make) {
    const pieces = await gathered((await speak(make)).body);
    holds(pieces.reduce((sum, piece) => sum + piece.length, 0) > 1000, pieces.length);
  },
  async realtime(make) {
    const client = make(aliases.realtime, key);
    const session = client instanceof AzureOpenAI
      ? await OpenAIRealtimeWS.azure(client, { deploymentName: aliases.realtime })
      : new OpenAIRealtimeWS({ model: aliases.realtime }, client);
    const kinds = await conversed(session);
    holds(kinds.includes(aliases.realtime) && kinds.some((kind) => kind.endsWith("delta")), kinds);
  },
  async models_list(make) {
    const listed = await gathered(make(aliases.chat, key).models.list());
    holds(listed.some((model) => model.id === aliases.chat), listed);
  },
  async models_retrieve(make) {
    const found = await make(aliases.chat, key).models.retrieve(aliases.chat);
    same([found.id, found.object], [aliases.chat, "model"]);
  },
  async files_upload(make) {
    const [, uploaded] = await upload(make);
    same([uploaded.filename, uploaded.bytes, uploaded.purpose], ["in.jsonl", lines.length, "batch"]);
  },
  async files_content(make) {
    const [client, uploaded] = await upload(make);
    same(await (await client.files.content(uploaded.id)).text(), lines);
  },
  async files_list(make) {
    const [client, uploaded] = await upload(make);
    const listed = await gathered(client.files.list());
    holds(listed.some((each) => each.id === uploaded.id), uploaded.id);
  },
  async files_delete(make) {
    const [client, uploaded] = await upload(make);
    same((await client.files.delete(uploaded.id)).deleted, true);
    const error = await failure(() => client.files.retrieve(uploaded.id));
    holds(error instanceof NotFoundError, error);
  },
  async batches_create(make) {
    const [client, made] = await batch(make);
    same((await client.batches.retrieve(made.id)).id, made.id);
  },
  async batches_list(make) {
    const [client, made] = await batch(make);
    const listed = await gathered(client.batches.list());
    holds(listed.some((each) => each.id === made.id), made.id);
  },
  async error_401(make) {
    const error = await refused(make, aliases.chat, unknownKey);
    same([error.constructor, error.code], [AuthenticationError, "invalid_api_key"]);
  },
  async error_404(make) {
    const error = await refused(make, unknownAlias);
    same([error.constructor, error.code], [NotFoundError, "model_not_found"]);
  },
  async error_429(make) {
    const barred = await refused(make, aliases.chat, barredKey);
    same([barred.constructor, barred.code], [RateLimitError, "rate_limit_exceeded"]);
    const throttled = await refused(make, aliases.throttled);
    same([throttled.constructor, throttled.status], [RateLimitError, 429]);
    holds(throttled.code, throttled);
  },
  async error_stream(make) {
    const error = await failure(() => gathered(chat(make, { stream: true }, "broken")));
    holds(error instanceof OpenAI.APIError && !(error instanceof APIConnectionError), error);
  },
  async retry_429(make) {
    const model = aliases.every_other_throttled;
    const there = make(model, key, { maxRetries: 1 }).chat.completions;
    for (const _ of [1, 2]) { // one of two requests in a row is refused the first time
      same((await there.create({ model, messages })).choices[0].message.content, said);
    }
  },
};

await run(ways, operations);
