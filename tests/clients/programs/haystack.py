import os
import sys

sys.path.pop(0)  # this file has the package's name
from haystack.components.generators.chat import OpenAIChatGenerator, OpenAIResponsesChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.utils import Secret
from haystack_integrations.components.generators.anthropic import AnthropicChatGenerator

sys.path.insert(0, __file__.rpartition("/")[0])
from common import BASE, CLAUDE, GPT, KEY, V1, run

os.environ["ANTHROPIC_BASE_URL"] = BASE
ASKED = [ChatMessage.from_user("Say hello.")]
key = Secret.from_token(KEY)
chat = OpenAIChatGenerator(model=GPT, api_base_url=V1, api_key=key)
responses = OpenAIResponsesChatGenerator(model=GPT, api_base_url=V1, api_key=key)
claude = AnthropicChatGenerator(model=CLAUDE, api_key=key)
streamed: list[object] = []
run(
    {
        "chat": lambda: chat.run(ASKED)["replies"][0].text,
        "responses": lambda: responses.run(ASKED)["replies"][0].text,
        "messages": lambda: claude.run(ASKED)["replies"][0].text,
        "chat stream": lambda: chat.run(ASKED, streaming_callback=streamed.append)["replies"][0].text and streamed,
        "messages stream": lambda: claude.run(ASKED, streaming_callback=streamed.append)["replies"][0].text,
    }
)
