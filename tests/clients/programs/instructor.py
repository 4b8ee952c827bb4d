import sys

sys.path.pop(0)  # this file has the package's name
import anthropic
import instructor
import openai
from pydantic import BaseModel

sys.path.insert(0, __file__.rpartition("/")[0])
from common import BASE, CLAUDE, GPT, KEY, PROMPT, V1, run


class Person(BaseModel):
    name: str
    city: str


ASKED = [{"role": "user", "content": PROMPT}]
tools = instructor.from_openai(openai.OpenAI(base_url=V1, api_key=KEY))
schema = instructor.from_openai(openai.OpenAI(base_url=V1, api_key=KEY), mode=instructor.Mode.JSON_SCHEMA)
claude = instructor.from_anthropic(anthropic.Anthropic(base_url=BASE, api_key=KEY))
run(
    {
        "chat tools": lambda: tools.chat.completions.create(model=GPT, messages=ASKED, response_model=Person),
        "chat json schema": lambda: schema.chat.completions.create(model=GPT, messages=ASKED, response_model=Person),
        "messages tools": lambda: claude.messages.create(
            model=CLAUDE, max_tokens=300, messages=ASKED, response_model=Person
        ),
        "chat partial stream": lambda: list(
            tools.chat.completions.create_partial(model=GPT, messages=ASKED, response_model=Person)
        ),
    }
)
