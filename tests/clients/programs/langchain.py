from typing import Any

from common import BASE, CLAUDE, GPT, KEY, PROMPT, V1, run
from langchain_anthropic import ChatAnthropic
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Person(BaseModel):
    """A person."""

    name: str
    city: str


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


gpt = ChatOpenAI(model=GPT, base_url=V1, api_key=KEY)
responses = ChatOpenAI(model=GPT, base_url=V1, api_key=KEY, use_responses_api=True)
claude = ChatAnthropic(model_name=CLAUDE, base_url=BASE, api_key=KEY)


async def later() -> Any:
    return (await gpt.ainvoke("hello")).content and (await claude.ainvoke("hello")).content


operations: dict[str, Any] = {"async": later}
for name, model in (("chat", gpt), ("responses", responses), ("messages", claude)):
    operations |= {
        name: lambda m=model: m.invoke("Say hello.").content,
        f"{name} stream": lambda m=model: len(list(m.stream("Say hello."))) > 1,
        f"{name} tools": lambda m=model: m.bind_tools([weather]).invoke("Weather in London?").content is not None,
    }
operations["chat structured"] = lambda: gpt.with_structured_output(Person).invoke(PROMPT)
operations["messages structured (json_schema)"] = lambda: claude.with_structured_output(
    Person, method="json_schema"
).invoke(PROMPT)
operations["messages structured (tool)"] = lambda: claude.with_structured_output(Person).invoke(PROMPT)
run(operations)
