from typing import Any

from common import BASE, CLAUDE, GPT, KEY, V1, run
from llama_index.core.llms import ChatMessage
from llama_index.llms.anthropic import Anthropic
from llama_index.llms.anthropic.utils import CLAUDE_MODELS
from llama_index.llms.openai_like import OpenAILike

ASKED = [ChatMessage(role="user", content="Say hello.")]
# Both send temperature 0.1 unasked, which no current model takes: x-waybill-drop leaves it out.
drop = {"x-waybill-drop": "temperature"}
CLAUDE_MODELS[CLAUDE] = 200_000  # its table of context sizes refuses every other name
gpt = OpenAILike(model=GPT, api_base=V1, api_key=KEY, is_chat_model=True, default_headers=drop)
claude = Anthropic(model=CLAUDE, base_url=BASE, api_key=KEY, default_headers=drop)
operations: dict[str, Any] = {
    "chat": lambda: gpt.chat(ASKED).message.content,
    "chat stream": lambda: [chunk.delta for chunk in gpt.stream_chat(ASKED)],
    "messages": lambda: claude.chat(ASKED).message.content,
    "messages stream": lambda: [chunk.delta for chunk in claude.stream_chat(ASKED)],
}
run(operations)
