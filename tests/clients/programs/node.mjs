// The Node SDKs and the Vercel AI SDK. Prints one JSON line per operation.
import Anthropic from "@anthropic-ai/sdk";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, streamText, Output } from "ai";
import OpenAI, { toFile } from "openai";
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

async function untilEnded(look) {
  const finals = ["completed", "failed", "expired", "cancelled", "ended"], end = Date.now() + 120_000;
  for (;;) {
    const found = await look();
    if (finals.includes(found.status ?? found.processing_status)) return found;
    if (Date.now() > end) throw new Error(`not over in time: ${JSON.stringify(found)}`);
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}

async function filesAndBatches() {
  const row = (n) => ({ custom_id: `r${n}`, method: "POST", url: "/v1/chat/completions", body: { model: gptModel, messages: hi } });
  const content = [0, 1, 2].map((n) => JSON.stringify(row(n))).join("\n");
  const file = await gpt.files.create({ file: await toFile(Buffer.from(content), "rows.jsonl"), purpose: "batch" });
  const batch = await gpt.batches.create({
    input_file_id: file.id, endpoint: "/v1/chat/completions", completion_window: "24h",
  });
  const done = await untilEnded(() => gpt.batches.retrieve(batch.id));
  const answers = (await (await gpt.files.content(done.output_file_id)).text()).trim().split("\n").map((line) => JSON.parse(line));
  return answers.filter((row) => row.response.status_code === 200).map((row) => row.custom_id).join() === "r0,r1,r2";
}

async function messageBatches() {
  const params = { model: claudeModel, max_tokens: 300, messages: hi };
  const batch = await claude.messages.batches.create({ requests: [0, 1, 2].map((n) => ({ custom_id: `r${n}`, params })) });
  await untilEnded(() => claude.messages.batches.retrieve(batch.id));
  const ids = [];
  for await (const row of await claude.messages.batches.results(batch.id)) if (row.result.type === "succeeded") ids.push(row.custom_id);
  return ids.sort().join() === "r0,r1,r2";
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
  "openai files and batches": filesAndBatches,
  "anthropic message batches": messageBatches,
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
