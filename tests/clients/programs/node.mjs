// The Node SDKs and the Vercel AI SDK. Prints one JSON line per operation.
import Anthropic from "@anthropic-ai/sdk";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, streamText, Output } from "ai";
import OpenAI from "openai";
import { z } from "zod";

const base = process.env.WAYBILL_TEST_BASE, v1 = `${base}/v1`;
const gptModel = process.env.WAYBILL_TEST_GPT, claudeModel = process.env.WAYBILL_TEST_CLAUDE;
const apiKey = "any", hi = [{ role: "user", content: "Say hello." }];
const gpt = new OpenAI({ baseURL: v1, apiKey }), claude = new Anthropic({ baseURL: base, apiKey });
const ai = createOpenAI({ baseURL: v1, apiKey }), aiClaude = createAnthropic({ baseURL: v1, apiKey });
const person = Output.object({ schema: z.object({ name: z.string(), city: z.string() }) });
const prompt = "Name: Ada Lovelace\nCity: London";

async function collect(stream) {
  let text = "";
  for await (const part of stream) text += part;
  return text;
}

const operations = {
  "openai chat": async () => (await gpt.chat.completions.create({ model: gptModel, messages: hi })).choices[0].message.content,
  "openai chat stream": async () => {
    let text = "";
    for await (const c of await gpt.chat.completions.create({ model: gptModel, messages: hi, stream: true }))
      text += c.choices[0]?.delta?.content ?? "";
    return text;
  },
  "openai responses": async () => (await gpt.responses.create({ model: gptModel, input: "Say hello." })).output_text,
  "anthropic messages": async () => (await claude.messages.create({ model: claudeModel, max_tokens: 300, messages: hi })).content.length,
  "anthropic stream": async () =>
    (await claude.messages.stream({ model: claudeModel, max_tokens: 300, messages: hi }).finalMessage()).content.length,
  "ai sdk responses": async () => (await generateText({ model: ai(gptModel), prompt: "Say hello." })).text,
  "ai sdk chat": async () => (await generateText({ model: ai.chat(gptModel), prompt: "Say hello." })).text,
  "ai sdk messages": async () => (await generateText({ model: aiClaude(claudeModel), prompt: "Say hello." })).text,
  "ai sdk chat stream": async () => collect(streamText({ model: ai.chat(gptModel), prompt: "Say hello." }).textStream),
  "ai sdk responses stream": async () => collect(streamText({ model: ai(gptModel), prompt: "Say hello." }).textStream),
  "ai sdk messages stream": async () => collect(streamText({ model: aiClaude(claudeModel), prompt: "Say hello." }).textStream),
  "ai sdk chat object": async () => (await generateText({ model: ai.chat(gptModel), prompt, output: person })).output,
  "ai sdk messages object": async () => (await generateText({ model: aiClaude(claudeModel), prompt, output: person })).output,
};
for (const [op, run] of Object.entries(operations)) {
  let line;
  try {
    const value = await run();
    line = { op, ok: Boolean(value), note: value ? "" : "empty" };
  } catch (error) {
    line = { op, ok: false, note: `${error.name}: ${error.message}`.slice(0, 300) };
  }
  console.log(JSON.stringify(line));
}
