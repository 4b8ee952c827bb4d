"""The neutral form between the dialects: a prompt with its tools on the way in, pieces of an answer on the way out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Dialect = Literal["chat", "responses", "messages"]
Effort = str


class Unsupported(ValueError):
    """A request cannot be carried as it is: the parameter (as the client wrote it) and why.

    Attributes:
        param: Its path, such as `messages[2].content`.
        reason: What is wrong and what to do instead.
        is_wrong: True = no lane could take it (malformed); False = another lane could.
    """

    def __init__(self, param: str, reason: str, *, is_wrong: bool = False) -> None:
        super().__init__(f"{param}: {reason}")
        self.param = param
        self.reason = reason
        self.is_wrong = is_wrong


def malformed(param: str, reason: str) -> Unsupported:
    """For what no lane could take."""
    return Unsupported(param, reason, is_wrong=True)


@dataclass(frozen=True, slots=True)
class Text:
    """Words."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """A picture: inline (`media_type`, base64 `data`) or by address (`url`)."""

    media_type: str = ""
    data: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The model asks for a tool; `arguments` is JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What the tool answered."""

    id: str
    parts: tuple[Text | Image, ...]
    is_error: bool = False


Part = Text | Image | ToolCall | ToolResult


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of the conversation. Tool results stand in user turns, tool calls in assistant turns."""

    role: Literal["user", "assistant"]
    parts: tuple[Part, ...]


def words(turn: Turn) -> str:
    """The text of a turn, without pictures, tool calls and their results."""
    return " ".join(part.text for part in turn.parts if isinstance(part, Text))


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may ask for."""

    name: str
    description: str
    schema: Mapping[str, Any]
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """Whether a tool must be used: `auto`, `none`, `any` or `named`."""

    mode: Literal["auto", "none", "any", "named"] = "auto"
    name: str = ""


@dataclass(frozen=True, slots=True)
class Form:
    """The answer is JSON: of a schema, or (None) any object."""

    schema: Mapping[str, Any] | None
    name: str = "answer"
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request in no dialect. None and empty mean "not given"."""

    turns: tuple[Turn, ...]
    system: str = ""
    tools: tuple[Tool, ...] = ()
    choice: Choice = Choice()
    parallel_tools: bool = True
    form: Form | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stops: tuple[str, ...] = ()
    effort: Effort | None = None
    """A reasoning effort; `none` = no thinking."""
    user: str | None = None
    stream: bool = False
    include_usage: bool = False
    """Chat: whether a last chunk with usage was asked for."""

    @property
    def has_images(self) -> bool:
        """Whether the model must see."""
        return any(_sees(part) for turn in self.turns for part in turn.parts)


def _sees(part: Part) -> bool:
    return isinstance(part, Image) or (isinstance(part, ToolResult) and any(isinstance(p, Image) for p in part.parts))


# --- answers ----------------------------------------------------------------------------------------------------------

StopReason = Literal["end", "length", "stop_sequence", "tools", "refusal"]


@dataclass(frozen=True, slots=True)
class TextPiece:
    """More of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class RefusalPiece:
    """More of a refusal."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolStart:
    """The model begins to ask for a tool; pieces of its arguments follow."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolPiece:
    """More of the arguments of the tool call begun last."""

    arguments: str


Piece = TextPiece | RefusalPiece | ToolStart | ToolPiece


@dataclass(frozen=True, slots=True)
class Counts:
    """Token counts in no dialect; the same meaning as contract.Usage."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    thinking: int = 0

    @property
    def prompt(self) -> int:
        """All prompt tokens."""
        return self.input + self.cache_read + self.cache_write


@dataclass(frozen=True, slots=True)
class End:
    """How an answer ended."""

    stop: StopReason
    counts: Counts | None = None
    stop_sequence: str | None = None


@dataclass(slots=True)
class Collected:
    """An answer's pieces, joined."""

    text: str = ""
    refusal: str = ""
    tools: list[ToolCall] = field(default_factory=list)
    order: list[Literal["text", "refusal", "tool"]] = field(default_factory=list)


def collect(pieces: Iterable[Piece]) -> Collected:
    """Join the pieces of an answer."""
    texts: list[str] = []
    refusals: list[str] = []
    calls: list[tuple[str, str, list[str]]] = []
    order: list[Literal["text", "refusal", "tool"]] = []
    for piece in pieces:
        match piece:
            case TextPiece(text):
                texts.append(text)
                if "text" not in order:
                    order.append("text")
            case RefusalPiece(text):
                refusals.append(text)
                if "refusal" not in order:
                    order.append("refusal")
            case ToolStart(id=call_id, name=name):
                calls.append((call_id, name, []))
                order.append("tool")
            case ToolPiece(arguments):
                if calls:
                    calls[-1][2].append(arguments)
    tools = [ToolCall(call_id, name, "".join(parts) or "{}") for call_id, name, parts in calls]
    return Collected("".join(texts), "".join(refusals), tools, order)


# --- reading JSON that nobody vouches for -----------------------------------------------------------------------------

MAX_DEPTH: Final = 100


def is_given(value: object) -> bool:
    """Whether a parameter says anything: null and empty lists or objects do not (clients.md)."""
    return value is not None and value != [] and value != {}


def obj(value: object, where: str) -> dict[str, Any]:
    """`value` as an object."""
    if not isinstance(value, dict):
        raise malformed(where, "must be an object")
    return value


def items(value: object, where: str) -> list[Any]:
    """`value` as a list."""
    if not isinstance(value, list):
        raise malformed(where, "must be a list")
    return value


def text(value: object, where: str) -> str:
    """`value` as a string."""
    if not isinstance(value, str):
        raise malformed(where, "must be a string")
    return value


def number(value: object, where: str) -> float | None:
    """`value` as a number; None when not given."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise malformed(where, "must be a number")
    return float(value)


def whole(value: object, where: str, *, least: int = 1) -> int | None:
    """`value` as a whole number from `least` on; None when not given."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise malformed(where, f"must be a whole number of at least {least}")
    return value


def flag(value: object, where: str) -> bool | None:
    """`value` as true or false; None when not given."""
    if value is not None and not isinstance(value, bool):
        raise malformed(where, "must be true or false")
    return value


def strings(value: object, where: str) -> tuple[str, ...]:
    """`value` as a tuple of strings; one string counts as a list of it."""
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    return tuple(text(item, f"{where}[{place}]") for place, item in enumerate(items(value, where)))


def refuse_unknown(body: Mapping[str, Any], known: Iterable[str], defaults: Mapping[str, Sequence[object]]) -> None:
    """Raise for a given parameter that is not carried over.

    Args:
        body: The request.
        known: Parameters that the reader takes.
        defaults: Further ones whose listed values say nothing new.
    """
    taken = set(known)
    for name, value in body.items():
        if name in taken or not is_given(value) or value in defaults.get(name, ()):
            continue
        raise Unsupported(name, "cannot be carried over to a model of the other provider")


def image_of(url: str, where: str) -> Image:
    """An image from a `data:` or web address."""
    if url.startswith("data:"):
        head, comma, data = url[5:].partition(",")
        media_type, _, encoding = head.partition(";")
        if not comma or encoding != "base64" or not media_type.startswith("image/"):
            raise malformed(where, "must be data:image/...;base64,... or a web address")
        return Image(media_type, data)
    if not url.startswith(("http://", "https://")):
        raise malformed(where, "must be data:image/...;base64,... or a web address")
    return Image(url=url)


def image_url(image: Image) -> str:
    """The inverse of `image_of`."""
    return image.url or f"data:{image.media_type};base64,{image.data}"


def dumps(value: object) -> str:
    """Compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def arguments_object(arguments: str, where: str) -> dict[str, Any]:
    """A tool call's arguments as an object: Claude takes nothing else."""
    try:
        value = json.loads(arguments or "{}")
    except ValueError:
        raise malformed(where, "is not JSON") from None
    return obj(value, where)
