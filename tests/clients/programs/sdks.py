import json
import time
from typing import Any

import anthropic
import openai
from common import BASE, CLAUDE, GPT, KEY, PROMPT, V1, run
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    city: str


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
HI: Any = [{"role": "user", "content": "Say hello."}]
gpt = openai.OpenAI(base_url=V1, api_key=KEY)
claude = anthropic.Anthropic(base_url=BASE, api_key=KEY)


async def both_async() -> Any:
    async with (
        openai.AsyncOpenAI(base_url=V1, api_key=KEY) as o,
        anthropic.AsyncAnthropic(base_url=BASE, api_key=KEY) as a,
    ):
        first = await o.chat.completions.create(model=GPT, messages=HI)
        async with a.messages.stream(model=CLAUDE, max_tokens=400, messages=HI) as stream:
            second = await stream.get_final_message()
        return first.choices[0].message.content and second.content


def chat_stream() -> Any:
    with gpt.chat.completions.stream(model=GPT, messages=HI) as stream:
        list(stream)
        return stream.get_final_completion().choices[0].message.content


def messages_stream() -> Any:
    with claude.messages.stream(model=CLAUDE, max_tokens=400, messages=HI) as stream:
        return "".join(stream.text_stream)


def responses_stream() -> Any:
    with gpt.responses.stream(model=GPT, input="Say hello.") as stream:
        list(stream)
        return stream.get_final_response().output_text


def not_found() -> Any:
    for call in (
        lambda: gpt.chat.completions.create(model="no-such-model", messages=HI),
        lambda: claude.messages.create(model="no-such-model", max_tokens=10, messages=HI),
    ):
        try:
            call()
        except (openai.NotFoundError, anthropic.NotFoundError):
            continue
        return False
    return True


def until_ended(look: Any) -> Any:
    """The batch, once it is over."""
    finals = ("completed", "failed", "expired", "cancelled", "ended")
    end = time.monotonic() + 120
    while getattr(found := look(), "status", None) not in finals and getattr(found, "processing_status", "") != "ended":
        assert time.monotonic() < end, f"not over in time: {found}"
        time.sleep(0.2)
    return found


def files_and_batches(url: Any, **asked: Any) -> Any:
    """Upload, run and download as OpenAI's guide to its Batch API does; every row must have been answered."""
    rows = [{"custom_id": f"r{n}", "method": "POST", "url": url, "body": {"model": GPT, **asked}} for n in range(3)]
    file = gpt.files.create(file=("\n".join(map(json.dumps, rows))).encode(), purpose="batch")
    batch = gpt.batches.create(input_file_id=file.id, endpoint=url, completion_window="24h")
    done = until_ended(lambda: gpt.batches.retrieve(batch.id))
    answers = [json.loads(line) for line in gpt.files.content(done.output_file_id).text.splitlines()]
    return [row["custom_id"] for row in answers if row["response"]["status_code"] == 200] == ["r0", "r1", "r2"]


def message_batches() -> Any:
    params: Any = {"model": CLAUDE, "max_tokens": 300, "messages": HI}
    batch = claude.messages.batches.create(requests=[{"custom_id": f"r{n}", "params": params} for n in range(3)])
    until_ended(lambda: claude.messages.batches.retrieve(batch.id))
    found = {row.custom_id: row.result.type for row in claude.messages.batches.results(batch.id)}
    return found == dict.fromkeys(("r0", "r1", "r2"), "succeeded")


TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
run(
    {
        "chat": lambda: gpt.chat.completions.create(model=GPT, messages=HI).choices[0].message.content,
        "chat stream helper": chat_stream,
        "chat parse": lambda: (
            gpt.chat.completions.parse(
                model=GPT, messages=[{"role": "user", "content": PROMPT}], response_format=Person
            )
            .choices[0]
            .message.parsed
        ),
        "chat tools": lambda: (
            gpt.chat.completions.create(model=GPT, messages=HI, tools=[TOOL], tool_choice="required")
            .choices[0]
            .message.tool_calls
        ),
        "chat json_object": lambda: (
            gpt.chat.completions.create(model=GPT, messages=HI, response_format={"type": "json_object"})
            .choices[0]
            .message.content
        ),
        "responses": lambda: gpt.responses.create(model=GPT, input="Say hello.").output_text,
        "responses stream helper": responses_stream,
        "responses parse": lambda: gpt.responses.parse(model=GPT, input=PROMPT, text_format=Person).output_parsed,
        "messages": lambda: claude.messages.create(model=CLAUDE, max_tokens=400, messages=HI).content,
        "messages stream helper": messages_stream,
        "messages parse": lambda: (
            claude.messages.parse(
                model=CLAUDE, max_tokens=400, messages=[{"role": "user", "content": PROMPT}], output_format=Person
            ).parsed_output
        ),
        "messages tools": lambda: (
            claude.messages.create(
                model=CLAUDE, max_tokens=400, messages=HI, tools=[{"name": "weather", "input_schema": SCHEMA}]
            ).content
        ),
        "count_tokens": lambda: claude.messages.count_tokens(model=CLAUDE, messages=HI).input_tokens,
        "models": lambda: len(list(gpt.models.list())) and len(list(claude.models.list(limit=3))),
        "async": both_async,
        "unknown model": not_found,
        "files and batches, chat": lambda: files_and_batches("/v1/chat/completions", messages=HI),
        "files and batches, responses": lambda: files_and_batches("/v1/responses", input="Say hello."),
        "message batches": message_batches,
    }
)
