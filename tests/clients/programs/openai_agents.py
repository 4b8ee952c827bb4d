from typing import Any

from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool
from common import GPT, KEY, PROMPT, V1, run
from openai import AsyncOpenAI
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    city: str


@function_tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


def model(kind: Any) -> Any:
    return kind(model=GPT, openai_client=AsyncOpenAI(base_url=V1, api_key=KEY))


async def stream(kind: Any) -> Any:
    result = Runner.run_streamed(Agent(name="a", model=model(kind)), "Say hello.")
    events = [event async for event in result.stream_events()]
    return events and result.final_output


operations: dict[str, Any] = {}
for name, kind in (("chat", OpenAIChatCompletionsModel), ("responses", OpenAIResponsesModel)):
    operations |= {
        name: lambda k=kind: Runner.run_sync(Agent(name="a", model=model(k)), "Say hello.").final_output,
        f"{name} stream": lambda k=kind: stream(k),
        f"{name} typed": lambda k=kind: (
            Runner.run_sync(Agent(name="a", model=model(k), output_type=Person), PROMPT).final_output
        ),
        f"{name} tools": lambda k=kind: (
            Runner.run_sync(Agent(name="a", model=model(k), tools=[weather]), "Weather in London?").final_output
        ),
    }
run(operations)
