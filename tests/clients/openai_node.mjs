// The `openai` package for Node: node openai_node.mjs URL MODEL, from a folder that has the package.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(pathToFileURL(`${process.cwd()}/`));
const { default: OpenAI } = await import(pathToFileURL(require.resolve("openai")));
const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const weather = { name: "get_weather", description: "Get the current weather for a city.", parameters };
const question = [{ role: "user", content: "What is the weather in Paris?" }];
const plain = [{ role: "user", content: "What does len do?" }];

const checks = {
  async chat() {
    const fields = { model, messages: plain, temperature: 0, max_tokens: 60 };
    const whole = (await client.chat.completions.create(fields)).choices[0].message.content;
    let text = "";
    for await (const chunk of await client.chat.completions.create({ ...fields, stream: true })) {
      text += chunk.choices[0]?.delta?.content ?? "";
    }
    assert.equal(text, whole);
  },
  async chat_tools() {
    const tools = [{ type: "function", function: weather }];
    const fields = { model, messages: question, tools, temperature: 0, max_tokens: 100 };
    const completion = await client.chat.completions.stream(fields).finalChatCompletion();
    const call = completion.choices[0].message.tool_calls[0];
    assert.deepEqual(JSON.parse(call.function.arguments), { city: "Paris" });
  },
  async responses_tools() {
    const tools = [{ type: "function", ...weather, strict: false }];
    const fields = { model, input: question, tools, temperature: 0, max_output_tokens: 100 };
    const first = await client.responses.stream(fields).finalResponse();
    const call = first.output[0];
    assert.deepEqual(JSON.parse(call.arguments), { city: "Paris" });
    const input = [{ type: "function_call_output", call_id: call.call_id, output: "clear" }];
    const second = await client.responses.create({ ...fields, input, previous_response_id: first.id });
    assert.ok(second.output_text);
  },
  async errors() {
    await assert.rejects(client.chat.completions.create({ model: "other", messages: plain }), OpenAI.NotFoundError);
  },
};

for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    console.log(`ok     openai for Node: ${name}`);
  } catch (error) {
    process.exitCode = 1;
    console.log(`FAILED openai for Node: ${name}\n       ${error}`);
  }
}
