import os
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it asks the web for its price list

import litellm
from common import BASE, CLAUDE, GPT, KEY, PROMPT, V1, run

litellm.suppress_debug_info = True
HI: list[dict[str, Any]] = [{"role": "user", "content": "Say hello."}]
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
ASKED: Any = {"type": "json_schema", "json_schema": {"name": "p", "strict": True, "schema": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False,
}}}  # fmt: skip


def chat(**more: Any) -> Any:
    return litellm.completion(model=f"openai/{GPT}", api_base=V1, api_key=KEY, messages=HI, **more)


def claude(**more: Any) -> Any:
    return litellm.completion(model=f"anthropic/{CLAUDE}", api_base=BASE, api_key=KEY, messages=HI, **more)


def text(answer: Any) -> Any:
    return answer.choices[0].message.content


def streamed(answer: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)


async def later() -> Any:
    return text(await litellm.acompletion(model=f"openai/{GPT}", api_base=V1, api_key=KEY, messages=HI))


def refused() -> bool:
    try:
        litellm.completion(model="openai/no-such-model", api_base=V1, api_key=KEY, messages=HI)
    except litellm.NotFoundError:
        return True
    return False


run(
    {
        "chat": lambda: text(chat()),
        "chat stream": lambda: streamed(chat(stream=True)),
        "chat async": later,
        "chat tools": lambda: chat(tools=[TOOL]).choices,
        "chat json": lambda: text(
            litellm.completion(
                model=f"openai/{GPT}", api_base=V1, api_key=KEY, response_format=ASKED,
                messages=[{"role": "user", "content": PROMPT}],
            )
        ),
        "responses": lambda: litellm.responses(model=f"openai/{GPT}", api_base=V1, api_key=KEY, input="Say hello.").output,
        "messages": lambda: text(claude()),
        "messages stream": lambda: streamed(claude(stream=True)),
        "messages tools": lambda: claude(tools=[TOOL]).choices,
        "unknown model": refused,
    }
)  # fmt: skip
