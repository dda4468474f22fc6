// @ai-sdk/azure, by the functions of the package ai.
import { createAzure } from "@ai-sdk/azure";
import {
  APICallError, embedMany, experimental_generateSpeech as generateSpeech, experimental_transcribe as transcribe,
  generateImage, generateText, jsonSchema, streamText, tool,
} from "ai";
import {
  aliases, barredKey, dated, failure, gateway, gathered, holds, key, run, said, same, unknownAlias, unknownKey, weather,
} from "./reporting.mjs";

globalThis.AI_SDK_LOG_WARNINGS = false; // they would stand between the lines of the report

const prompt = "ping";
const tools = { weather: tool({ inputSchema: jsonSchema(weather) }) };
const sound = Buffer.concat([Buffer.from("RIFF\0\0\0\0WAVE", "latin1"), Buffer.alloc(4096)]);
const picture = Buffer.concat([Buffer.from("\x89PNG\r\n\x1a\n", "latin1"), Buffer.alloc(64)]);

// A way makes a provider for a key. Retries are off: an error is to be seen.
const ways = {
  "createAzure with baseURL, async": (apiKey) => createAzure({ baseURL: `${gateway}/openai/v1`, apiKey }),
  "createAzure with tokenProvider, async": (token) =>
    createAzure({ baseURL: `${gateway}/openai/v1`, tokenProvider: async () => token }),
  "createAzure with useDeploymentBasedUrls, async": (apiKey) =>
    createAzure({ baseURL: `${gateway}/openai`, apiKey, apiVersion: dated, useDeploymentBasedUrls: true }),
};
const once = { maxRetries: 0 };

function streamed(model, more) {
  return streamText({ model, prompt, onError: () => {}, ...once, ...more }); // errors are read from the stream
}

async function refused(make, alias, apiKey = key) {
  const error = await failure(() => generateText({ model: make(apiKey).chat(alias), prompt, ...once }));
  holds(APICallError.isInstance(error), error);
  return [error.statusCode, error.data.error.code];
}

const operations = {
  async chat(make) {
    const answer = await generateText({ model: make(key).chat(aliases.chat), prompt, ...once });
    same([answer.text, answer.usage.outputTokens, answer.response.modelId], [said, 7, aliases.chat]);
  },
  async chat_stream(make) {
    same((await gathered(streamed(make(key).chat(aliases.chat)).textStream)).join(""), said);
  },
  async chat_stream_usage(make) {
    const answer = streamed(make(key).chat(aliases.chat));
    await answer.consumeStream();
    same((await answer.usage).outputTokens, 7);
  },
  async chat_tools(make) {
    const model = make(key).chat(aliases.chat);
    const { toolCalls: [call] } = await generateText({ model, prompt, tools, toolChoice: "required", ...once });
    same([call.toolName, call.input], ["weather", { city: "text" }]);
  },
  async chat_tools_stream(make) {
    const [call] = await streamed(make(key).chat(aliases.chat), { tools, toolChoice: "required" }).toolCalls;
    same([call.toolName, call.input], ["weather", { city: "text" }]);
  },
  async completions(make) {
    const answer = await generateText({ model: make(key).completion(aliases.chat), prompt, ...once });
    holds(answer.text.startsWith("Hello from Azure OpenAI! You said:"), answer.text); // its prompt is a dialogue
  },
  async completions_stream(make) {
    const text = (await gathered(streamed(make(key).completion(aliases.chat)).textStream)).join("");
    holds(text.startsWith("Hello from Azure OpenAI! You said:"), text);
  },
  async embeddings(make) {
    const model = make(key).embedding(aliases.embeddings);
    const answer = await embedMany({ model, values: ["one", "two"], ...once });
    same(answer.embeddings.length, 2);
    holds(answer.embeddings[0].length > 8 && answer.usage.tokens === 2, answer.usage);
  },
  async responses(make) {
    const answer = await generateText({ model: make(key).responses(aliases.chat), prompt, ...once });
    same([answer.text, answer.usage.outputTokens, answer.response.modelId], [said, 7, aliases.chat]);
  },
  async responses_stream(make) {
    same((await gathered(streamed(make(key).responses(aliases.chat)).textStream)).join(""), said);
  },
  async responses_continue(make) {
    const model = make(key).responses(aliases.chat);
    const first = await generateText({ model, prompt, ...once });
    const previousResponseId = first.providerMetadata.azure.responseId;
    const second = await generateText({ model, prompt, providerOptions: { azure: { previousResponseId } }, ...once });
    holds(second.usage.inputTokens > first.usage.inputTokens, second.usage);
  },
  async images_generate(make) {
    for (const alias of [aliases.dall_e, aliases.gpt_image]) {
      const answer = await generateImage({ model: make(key).image(alias), prompt: "a cat", ...once });
      same(answer.image.mediaType, "image/png");
    }
  },
  async images_edit(make) {
    const model = make(key).image(aliases.gpt_image);
    const answer = await generateImage({ model, prompt: { text: "both", images: [picture, picture] }, ...once });
    same(answer.image.mediaType, "image/png");
  },
  async transcribe(make) {
    for (const alias of [aliases.whisper, aliases.transcribe]) {
      const { text } = await transcribe({ model: make(key).transcription(alias), audio: sound, ...once });
      same(text, `Hello from Azure OpenAI! You said: audio.wav, ${sound.length} bytes`);
    }
  },
  async speech(make) {
    const { audio } = await generateSpeech({ model: make(key).speech(aliases.speech), text: "two words", voice: "alloy", ...once });
    holds(audio.uint8Array.length > 1000, audio.uint8Array.length);
  },
  async error_401(make) {
    same(await refused(make, aliases.chat, unknownKey), [401, "invalid_api_key"]);
  },
  async error_404(make) {
    same(await refused(make, unknownAlias), [404, "model_not_found"]);
  },
  async error_429(make) {
    same(await refused(make, aliases.chat, barredKey), [429, "rate_limit_exceeded"]);
    same((await refused(make, aliases.throttled))[0], 429);
  },
  async error_stream(make) {
    const parts = await gathered(streamed(make(key).chat(aliases.broken)).fullStream);
    holds(parts.some((part) => part.type === "error"), parts);
  },
  async retry_429(make) {
    const model = make(key).chat(aliases.every_other_throttled);
    for (const _ of [1, 2]) { // one of two requests in a row is refused the first time
      same((await generateText({ model, prompt, maxRetries: 1 })).text, said);
    }
  },
};

await run(ways, operations);
