from typing import Any

from any_llm import acompletion, completion
from common import BASE, CLAUDE, GPT, KEY, V1, run

HI: list[Any] = [{"role": "user", "content": "Say hello."}]


def ask(provider: str, model: str, base: str, **more: Any) -> Any:
    return completion(model=model, provider=provider, messages=HI, api_key=KEY, api_base=base, **more)


def text(answer: Any) -> Any:
    return answer.choices[0].message.content


def streamed(answer: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)


async def later() -> Any:
    return text(await acompletion(model=GPT, provider="openai", messages=HI, api_key=KEY, api_base=V1))


run(
    {
        "chat": lambda: text(ask("openai", GPT, V1)),
        "chat stream": lambda: streamed(ask("openai", GPT, V1, stream=True)),
        "chat async": later,
        "messages": lambda: text(ask("anthropic", CLAUDE, BASE)),
        "messages stream": lambda: streamed(ask("anthropic", CLAUDE, BASE, stream=True)),
    }
)
