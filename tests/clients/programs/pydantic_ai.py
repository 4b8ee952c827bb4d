import sys

sys.path.pop(0)  # this file has the package's name
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

sys.path.insert(0, __file__.rpartition("/")[0])
from typing import Any

from common import BASE, CLAUDE, GPT, KEY, PROMPT, V1, run


class Person(BaseModel):
    name: str
    city: str


openai = OpenAIProvider(base_url=V1, api_key=KEY)
models = {
    "chat": OpenAIChatModel(GPT, provider=openai),
    "responses": OpenAIResponsesModel(GPT, provider=openai),
    # It looks up by the name what a model can do, and knows Claude's names only.
    "messages": AnthropicModel(
        CLAUDE,
        provider=AnthropicProvider(base_url=BASE, api_key=KEY),
        profile=None if CLAUDE.startswith("claude") else {"supports_json_schema_output": True},
    ),
}


async def stream(model: Any) -> Any:
    async with Agent(model).run_stream("Say hello.") as result:
        return [text async for text in result.stream_text()]


operations: dict[str, Any] = {}
for name, model in models.items():
    operations |= {
        name: lambda m=model: Agent(m).run_sync("Say hello.").output,
        f"{name} stream": lambda m=model: stream(m),
        f"{name} typed (tool)": lambda m=model: Agent(m, output_type=Person).run_sync(PROMPT).output,
        f"{name} typed (native)": lambda m=model: Agent(m, output_type=NativeOutput(Person)).run_sync(PROMPT).output,
    }
run(operations)
