// What the JavaScript programs share: what they are given, and how they say what came of it.
// A program runs inside the environment of one client and prints one line of JSON per attempt.
import { deepStrictEqual } from "node:assert";

export const gateway = process.env.GATEWAY_URL;
export const key = process.env.GATEWAY_KEY;
export const barredKey = process.env.GATEWAY_BARRED_KEY; // its limit lets nothing through
export const aliases = JSON.parse(process.env.GATEWAY_ALIASES); // the alias that plays each role
export const unknownKey = "sk-unknown";
export const unknownAlias = "nowhere";

export const said = "Hello from Azure OpenAI! You said: ping";
export const dated = "2025-04-01-preview"; // clients must say one; the gateway uses its own
export const weather = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };

export const same = (actual, wanted) => deepStrictEqual(actual, wanted);

export function holds(condition, otherwise) {
  if (!condition) throw new Error(`unexpected: ${JSON.stringify(otherwise)}`);
}

export async function gathered(stream) {
  const found = [];
  for await (const item of await stream) found.push(item);
  return found;
}

export async function failure(attempt) {
  try {
    await attempt();
  } catch (error) {
    return error;
  }
  throw new Error("an error was expected");
}

// Tries each operation with each way, or the operations that the arguments name.
export async function run(ways, operations) {
  const chosen = process.argv.slice(2);
  for (const [way, caller] of Object.entries(ways)) {
    for (const [operation, attempt] of Object.entries(operations)) {
      if (chosen.length && !chosen.includes(operation)) continue;
      let [outcome, note] = ["ok", ""];
      try {
        await attempt(caller);
      } catch (error) {
        [outcome, note] = ["failed", String(error.stack ?? error).slice(0, 800)];
      }
      console.log(JSON.stringify({ way, operation, outcome, note }));
    }
  }
}
