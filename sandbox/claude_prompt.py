"""Reads a Claude prompt into blocks, in the order the cache hashes them: tools, system, messages."""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json

from sandbox import tokens
from sandbox.claude_rules import VERSION
from sandbox.exchange import Json, invalid
from sandbox.models import Model
from sandbox.promptcache import Block

_TTL_S = {"5m": 300, "1h": 3600}
# What a message costs beside its text.
_ROLE_BYTES = 8


def read_prompt(body: Json, model: Model) -> tuple[list[Block], str]:
    """Return the prompt as blocks in cache order (tools, system, messages) and the text of the user's turns."""
    reader = _PromptReader(model)
    for place, tool in enumerate(body.get("tools") or []):
        reader.other(tool, f"tools.{place}")
    system = body.get("system")
    if isinstance(system, str):
        reader.text(system, None, b"system")
    elif isinstance(system, list):
        for place, block in enumerate(system):
            if not isinstance(block, dict) or block.get("type") != "text":
                raise invalid(f"system.{place}: Input should be a text block")
            reader.part(block, f"system.{place}", "system")
    elif system is not None:
        raise invalid("system: Input should be a string or a list of text blocks")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise invalid("messages: at least one message is required")
    for place, message in enumerate(messages):
        reader.message(message, f"messages.{place}")
    if messages[-1]["role"] == "assistant" and not model.prefill:
        raise invalid(
            f"{model.id} does not support prefill: the last message must be from the user", code="prefill_not_supported"
        )
    reader.automatic(body.get("cache_control"))
    return reader.blocks, "\n".join(reader.user_texts)


class _PromptReader:
    def __init__(self, model: Model) -> None:
        self.blocks: list[Block] = []
        self.user_texts: list[str] = []
        self._model = model
        self._breakpoints = 0
        self._short_seen = False

    def message(self, message: Any, where: str) -> None:
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ("user", "assistant", "system"):
            raise invalid(f"{where}.role: Input should be 'user' or 'assistant'")
        content = message.get("content")
        if isinstance(content, str):
            if not content and role == "user":
                raise invalid(f"{where}: text content must be non-empty")
            if role == "user":
                self.user_texts.append(content)
            self.text(content, None, role.encode())
        elif isinstance(content, list):
            if not content and role == "user":
                raise invalid(f"{where}: all messages must have non-empty content")
            for place, block in enumerate(content):
                self.part(block, f"{where}.content.{place}", role)
        else:
            raise invalid(f"{where}.content: Input should be a string or a list of content blocks")

    def part(self, block: Any, where: str, role: str) -> None:
        kind = block.get("type") if isinstance(block, dict) else None
        if not isinstance(kind, str):
            raise invalid(f"{where}.type: Field required")
        if kind == "text":
            text = block.get("text")
            if not isinstance(text, str) or not text:
                raise invalid(f"{where}.text: text content blocks must be non-empty")
            if role == "user":
                if block.get("citations"):
                    raise invalid(f"{where}.citations: not permitted on user text blocks at API version {VERSION}")
                self.user_texts.append(text)
            self.text(text, self._ttl_s(block, where), role.encode())
        elif kind == "document" and role == "assistant":
            raise invalid(f"{where}: document blocks are not permitted in assistant messages at API version {VERSION}")
        else:
            if role == "user":
                self._nested_text(block)
            self.other(block, where, role.encode())

    def text(self, text: str, ttl_s: int | None, role: bytes) -> None:
        material = text.encode("utf-8", "surrogatepass")
        count = tokens.estimate(len(material) + _ROLE_BYTES, self._model.bytes_per_token)
        self.blocks.append(Block(role + b"\0" + material, count, ttl_s))

    def other(self, block: Any, where: str, role: bytes = b"") -> None:
        """A block that is not text: its JSON counts, binary sources count a flat number of tokens."""
        if not isinstance(block, dict):
            raise invalid(f"{where}: Input should be an object")
        ttl_s = self._ttl_s(block, where)
        material = to_json({key: value for key, value in block.items() if key != "cache_control"})
        source = block.get("source")
        if isinstance(source, dict) and source.get("type") in ("base64", "url", "file"):
            count = tokens.ATTACHMENT_TOKENS
        else:
            count = tokens.estimate(len(material), self._model.bytes_per_token)
        self.blocks.append(Block(role + b"\1" + material, count, ttl_s))

    def automatic(self, control: Any) -> None:
        """Apply the top-level `cache_control`: a breakpoint on the last block, unless it has one."""
        if control is None or not self.blocks or self.blocks[-1].ttl_s is not None:
            return
        ttl_s = self._ttl_s({"cache_control": control}, "cache_control")
        last = self.blocks[-1]
        self.blocks[-1] = Block(last.material, last.tokens, ttl_s)

    def _nested_text(self, block: Json) -> None:
        source = block.get("source")
        if isinstance(source, dict) and source.get("type") == "text" and isinstance(source.get("data"), str):
            self.user_texts.append(source["data"])

    def _ttl_s(self, block: Json, where: str) -> int | None:
        control = block.get("cache_control")
        if control is None:
            return None
        if where != "cache_control":
            where = f"{where}.cache_control"
        if not isinstance(control, dict) or control.get("type") != "ephemeral":
            raise invalid(f"{where}.type: Input should be 'ephemeral'")
        ttl = control.get("ttl") or "5m"
        ttl_s = _TTL_S.get(ttl) if isinstance(ttl, str) else None
        if ttl_s is None:
            raise invalid(f"{where}.ttl: Input should be '5m' or '1h'")
        self._breakpoints += 1
        if self._breakpoints > 4:
            raise invalid("A maximum of 4 blocks with cache_control may be provided.")
        if ttl_s == 300:
            self._short_seen = True
        elif self._short_seen:
            raise invalid(f"{where}.ttl: a '1h' breakpoint must not come after a '5m' one")
        return ttl_s
