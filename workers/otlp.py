"""Spans as bytes of OpenTelemetry's protocol, written directly: an eighth of what the SDK's span objects and encoder cost.

Only what `workers/tracing.py` needs of opentelemetry-proto's trace.proto and common.proto (stable since 1.0: field numbers
never change). Tests read the bytes back with the official classes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

Value = str | bool | int | float | tuple[str, ...]

INTERNAL: Final = 1
CLIENT: Final = 3
_ERROR: Final = 2
_KNOWS_PARENT, _PARENT_IS_REMOTE = 0x100, 0x200
_INT64: Final = 1 << 64
_WORD: Final = 32
"""Characters up to which a value is taken for a name (model, state, intent) that will come again; ids are longer."""
# Tags of trace.proto and common.proto: field number << 3 | wire type (0 varint, 1 eight bytes, 2 with length, 5 four bytes).
_TIMES: Final = struct.Struct("<BQBQ")
_DOUBLE: Final = struct.Struct("<Bd")
_FLAGS: Final = struct.Struct("<HI")


def span(
    name: str,
    trace_id: bytes,
    span_id: bytes,
    parent_id: bytes,
    *,
    flags: int,
    kind: int,
    start_ns: int,
    end_ns: int,
    attributes: Mapping[str, Value],
    is_error: bool,
) -> bytes:
    """One span, as an entry of `request`.

    Args:
        name: What was done.
        trace_id: 16 bytes.
        span_id: 8 bytes.
        parent_id: 8 bytes, or none for the first of its trace.
        flags: W3C's trace flags.
        kind: `INTERNAL` or `CLIENT`.
        start_ns, end_ns: Since the epoch.
        attributes: By name.
        is_error: Whether it failed.
    """
    body = b"".join(
        (
            b"\x0a\x10",
            trace_id,
            b"\x12\x08",
            span_id,
            b"\x22\x08" + parent_id if parent_id else b"",
            _text(0x2A, name),
            bytes((0x30, kind)),
            _TIMES.pack(0x39, start_ns, 0x41, end_ns),
            *[_attribute(key, value) for key, value in attributes.items()],
            bytes((0x7A, 2, 0x18, _ERROR)) if is_error else b"\x7a\x00",
            # Field 16 is the first whose tag takes two bytes.
            _FLAGS.pack(0x0185, flags | _KNOWS_PARENT | (_PARENT_IS_REMOTE if parent_id else 0)),
        )
    )
    return _nested(0x12, body)


def request(spans: Iterable[bytes], *, resource: Mapping[str, Value], scope: str) -> bytes:
    """An ExportTraceServiceRequest with spans that one process made."""
    about = b"".join([_nested(0x0A, key_value(key, value)) for key, value in resource.items()])
    scoped = _nested(0x0A, _text(0x0A, scope)) + b"".join(spans)
    return _nested(0x0A, _nested(0x0A, about) + _nested(0x12, scoped))


def _attribute(key: str, value: Value) -> bytes:
    if type(value) is str and len(value) <= _WORD:
        return _word(key, value)
    return _nested(0x4A, key_value(key, value))


@lru_cache(maxsize=2048)
def _word(key: str, value: str) -> bytes:
    return _nested(0x4A, key_value(key, value))


def key_value(key: str, value: Value) -> bytes:
    """The body of a KeyValue."""
    match value:
        case str():
            held = _text(0x0A, value)
        case bool():
            held = b"\x10\x01" if value else b"\x10\x00"
        case int():
            held = b"\x18" + _varint(value % _INT64)
        case float():
            held = _DOUBLE.pack(0x21, value)
        case _:
            held = _nested(0x2A, b"".join([_nested(0x0A, _text(0x0A, one)) for one in value]))
    return _key(key) + _nested(0x12, held)


@lru_cache(maxsize=256)
def _key(key: str) -> bytes:
    return _text(0x0A, key)


def _text(tag: int, text: str) -> bytes:
    # An answer may hold half a surrogate pair, which protobuf's text must not.
    return _nested(tag, text.encode("utf-8", "replace"))


def _nested(tag: int, body: bytes) -> bytes:
    length = len(body)
    return (bytes((tag, length)) if length < 0x80 else bytes((tag,)) + _varint(length)) + body


def _varint(number: int) -> bytes:
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
