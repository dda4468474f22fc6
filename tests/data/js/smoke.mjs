// Drives the gateway with openai-js and prints what it saw as one JSON object.
// Usage: node smoke.mjs PROXY_URL CALLER_KEY ALIAS FILTERED_ALIAS CUT_ALIAS
import OpenAI, { AzureOpenAI } from "openai";

const [proxy, apiKey, model, filteredModel, cutModel] = process.argv.slice(2);
const messages = [{ role: "user", content: "ping" }];
const clients = {
  OpenAI: new OpenAI({ baseURL: `${proxy}/v1`, apiKey, maxRetries: 0 }),
  AzureOpenAI: new AzureOpenAI({ endpoint: proxy, apiKey, apiVersion: "2024-10-21", maxRetries: 0 }),
};

async function streamed(client, options) {
  const chunks = [];
  for await (const chunk of await client.chat.completions.create({ model, messages, stream: true, ...options })) {
    chunks.push(chunk);
  }
  return chunks;
}

async function failure(promise) {
  try {
    await promise;
    return null;
  } catch (error) {
    return { kind: error.constructor.name, status: error.status, code: error.code, id: error.requestID };
  }
}

const seen = {};
for (const [name, client] of Object.entries(clients)) {
  const whole = await client.chat.completions.create({ model, messages });
  const chunks = await streamed(client, { stream_options: { include_usage: true } });
  const vectors = await client.embeddings.create({ model, input: ["one", "two"], dimensions: 8 });
  const listed = [];
  for await (const entry of client.models.list()) listed.push(entry.id);
  seen[name] = {
    whole: whole.choices[0].message.content,
    model: whole.model,
    id: Boolean(whole._request_id),
    streamed: chunks.map((chunk) => chunk.choices[0]?.delta?.content ?? "").join(""),
    usage: chunks.at(-1).usage?.completion_tokens,
    vectors: vectors.data.map((entry) => entry.embedding.length),
    listed: listed.includes(model),
    retrieved: (await client.models.retrieve(model)).id,
    unknown: await failure(client.chat.completions.create({ model: "nowhere", messages })),
    filtered: await failure(client.chat.completions.create({ model: filteredModel, messages })),
    cut: await failure(streamed(client, { model: cutModel })),
  };
}
console.log(JSON.stringify(seen));
