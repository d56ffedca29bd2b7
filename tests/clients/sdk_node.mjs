// Runs openai-node: reads orders and writes results, each as a line of JSON, like sdk_python.py for openai-python.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

// The package is in target/clients/node, which the caller names, and not beside this file.
const installed = createRequire(`${process.env.CLIENTS_NODE}/package.json`);
const { default: OpenAI } = await import(pathToFileURL(installed.resolve("openai")));

const input = "Say something.";
const messages = [{ role: "user", content: input }];

const deeds = {
  async responses(client, model) {
    return whole(await client.responses.create({ model, input }));
  },

  async responses_stream(client, model) {
    let text = "";
    let last = null;
    const events = [];
    for await (const event of await client.responses.create({ model, input, stream: true })) {
      events.push(event.type);
      if (event.type === "response.output_text.delta") text += event.delta;
      last = event;
    }
    return { ...whole(last.response), text, events };
  },

  async responses_helper(client, model) {
    const events = [];
    const stream = client.responses.stream({ model, input });
    for await (const event of stream) events.push(event.type);
    return { ...whole(await stream.finalResponse()), events };
  },

  async chat(client, model) {
    const completion = await client.chat.completions.create({ model, messages });
    return { id: completion.id, text: completion.choices[0].message.content, ...chatUsage(completion.usage) };
  },

  async chat_stream(client, model) {
    const seen = { id: null, text: "", finish: null };
    let usage = null;
    const asked = { model, messages, stream: true, stream_options: { include_usage: true } };
    for await (const chunk of await client.chat.completions.create(asked)) {
      seen.id = chunk.id;
      for (const choice of chunk.choices) {
        seen.text += choice.delta.content ?? "";
        seen.finish = choice.finish_reason ?? seen.finish;
      }
      usage = chunk.usage ?? usage;
    }
    return { ...seen, ...chatUsage(usage) };
  },

  async models(client) {
    const models = [];
    for await (const model of client.models.list()) models.push(model.id);
    return { models };
  },
};

function whole(response) {
  const { usage } = response;
  // At the end of a stream, openai-node leaves output_text to the caller.
  const parts = response.output.flatMap((item) => item.content).map((part) => part.text);
  return {
    id: response.id,
    status: response.status,
    text: parts.join(""),
    input: usage.input_tokens,
    cached: usage.input_tokens_details.cached_tokens,
    output: usage.output_tokens,
    reasoning: usage.output_tokens_details.reasoning_tokens,
  };
}

function chatUsage(usage) {
  return {
    input: usage.prompt_tokens,
    cached: usage.prompt_tokens_details.cached_tokens,
    output: usage.completion_tokens,
    reasoning: usage.completion_tokens_details.reasoning_tokens,
  };
}

async function carryOut(order) {
  // Without retries: the checks count requests.
  const client = new OpenAI({ baseURL: `${order.url}/v1`, apiKey: order.token, maxRetries: 0, timeout: 30_000 });
  try {
    return await deeds[order.do](client, order.model);
  } catch (error) {
    if (!(error instanceof OpenAI.APIError) || error.status === undefined) {
      return { error: error.constructor.name, message: String(error) };
    }
    return {
      error: error.constructor.name,
      status: error.status,
      type: error.type,
      code: error.code,
      retry_after: error.headers.get("retry-after"),
    };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  process.stdout.write(`${JSON.stringify(await carryOut(JSON.parse(line)))}\n`);
}
