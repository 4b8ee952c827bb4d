"""The pure parts of the adapters: schemas, headers, requests, text. No sockets."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from policies.catalog import CATALOG
from policies.dialects.schema import closed, label_schema
from waybill.contract import Message, Usage
from waybill.errors import ConfigError, Rejected
from workers.providers import anthropic, openai
from workers.providers.base import Call
from workers.providers.headers import MAX_RETRY_AFTER_S, anthropic_limits, openai_limits, retry_after_s
from workers.providers.wire import Text

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
HAIKU, OPUS, OLD_HAIKU = CATALOG["claude-haiku-5-5"], CATALOG["claude-opus-5-5"], CATALOG["claude-haiku-4-5"]
LUNA, ASTRA = CATALOG["gpt-6-luna"], CATALOG["gpt-6.2-astra"]
ASKED = (Message(role="user", content="hello"),)

# Schemas ------------------------------------------------------------------------------------------------------------

RECEIPT: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "company": {"type": "string", "minLength": 1, "description": "Name"},
        "total": {"type": ["number", "null"], "minimum": 0},
        "items": {"type": "array", "items": {"$ref": "#/$defs/item"}},
    },
    "required": ["company", "total", "items"],
    "$defs": {"item": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}},
}


def test_every_object_is_closed_and_bounds_become_words() -> None:
    strict = closed(RECEIPT)

    assert strict is not None
    assert strict.all_required
    assert strict.schema == {
        "type": "object",
        "properties": {
            "company": {"type": "string", "description": "Name (minLength: 1)"},
            "total": {
                "anyOf": [
                    {"type": "number", "description": "(minimum: 0)"},
                    {"type": "null", "description": "(minimum: 0)"},
                ],
                "description": "(minimum: 0)",
            },
            "items": {"type": "array", "items": {"$ref": "#/$defs/item"}},
        },
        "required": ["company", "total", "items"],
        "additionalProperties": False,
        "$defs": {
            "item": {
                "type": "object",
                "properties": {"text": {"type": "string"}},
                "required": ["text"],
                "additionalProperties": False,
            }
        },
    }
    assert RECEIPT["properties"]["company"]["minLength"] == 1, "the job's own schema was changed"


def test_an_optional_property_stays_optional_and_is_reported() -> None:
    strict = closed({"type": "object", "properties": {"a": {"type": "string"}}})

    assert strict is not None
    assert not strict.all_required
    assert "required" not in strict.schema


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"type": "string"}},
        {"type": "object"},
        {"type": "object", "properties": {"a": {}}},
        {"type": "object", "properties": {"a": True}},
        {"type": "object", "properties": {"a": {"type": "object", "additionalProperties": {"type": "string"}}}},
        {"type": "object", "properties": {"a": {"oneOf": [{"type": "string"}]}}},
        {"type": "object", "properties": {"a": {"type": "array"}}},
        {"type": "object", "properties": {"a": {"$ref": "#"}}},
        {"type": "object", "properties": {"a": {"$ref": "https://example.com/schema"}}},
        {
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/a"}},
            "$defs": {
                "a": {"type": "object", "properties": {"next": {"$ref": "#/$defs/b"}}},
                "b": {"anyOf": [{"$ref": "#/$defs/a"}]},
            },
        },
    ],
)
def test_what_no_strict_mode_takes_is_asked_for_in_words(schema: dict[str, Any]) -> None:
    assert closed(schema) is None
    for request in (
        anthropic.message_request(Call(HAIKU, ASKED, json_schema=schema)),
        openai.completion_request(Call(LUNA, ASKED, json_schema=schema)),
    ):
        assert "output_config" not in request
        assert "response_format" not in request
        assert json.dumps(schema, separators=(",", ":")) in json.dumps(request).replace('\\"', '"')


PRIMITIVES = st.sampled_from(
    [
        {"type": "string"},
        {"type": "integer", "minimum": 3},
        {"type": "boolean"},
        {"enum": ["x", 1]},
        {"type": ["string", "null"]},
    ]
)


def objects(children: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from(["a", "b", "c", "minimum", "$ref"])
    properties = st.dictionaries(names, children, min_size=1, max_size=3)
    return properties.flatmap(
        lambda made: st.sets(st.sampled_from(sorted(made))).map(
            lambda required: {"type": "object", "properties": made, "required": sorted(required)}
        )
    )


SCHEMAS = objects(
    st.recursive(
        PRIMITIVES,
        lambda inner: objects(inner) | inner.map(lambda item: {"type": "array", "items": item}),
        max_leaves=6,
    )
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["x", "y"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["a", "b", "c", "minimum", "$ref"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(SCHEMAS, VALUES)
def test_what_fits_the_strict_schema_fits_the_jobs_own_but_for_bounds(schema: dict[str, Any], value: Any) -> None:
    strict = closed(schema)

    assert strict is not None
    without_bounds = json.loads(json.dumps(schema).replace('"minimum": 3', '"title": "3"'))
    Draft202012Validator.check_schema(strict.schema)
    if Draft202012Validator(strict.schema).is_valid(value):
        assert Draft202012Validator(without_bounds).is_valid(value)
    assert strict.all_required == ('"required": []' not in json.dumps(schema) and _all_required(schema))


def _all_required(schema: Any) -> bool:
    if not isinstance(schema, dict):
        return True
    properties = schema.get("properties", {})
    inner = [*properties.values(), schema.get("items")]
    return set(properties) <= set(schema.get("required", [])) and all(_all_required(child) for child in inner)


def test_labels_are_an_enum_of_one_key() -> None:
    assert closed(label_schema(("a", "b"))) is not None


# Requests -----------------------------------------------------------------------------------------------------------


def test_a_claude_request_carries_what_the_api_version_allows_and_no_more() -> None:
    request = anthropic.message_request(Call(HAIKU, ASKED, system="Be brief.", labels=("a", "b"), effort="low"))

    assert request == {
        "model": "claude-haiku-5-5",
        "max_tokens": 1024,
        "messages": [{"role": "user", "content": "hello"}],
        "system": "Be brief.",
        "output_config": {"format": {"type": "json_schema", "schema": label_schema(("a", "b"))}, "effort": "low"},
    }


@pytest.mark.parametrize(
    "model, effort, wanted",
    [
        (HAIKU, None, {}),
        (HAIKU, "none", {"thinking": {"type": "disabled"}}),
        (OPUS, "none", {"output_config": {"effort": "low"}}),
        (OLD_HAIKU, "none", {}),
        (OPUS, "max", {"output_config": {"effort": "max"}}),
    ],
)
def test_thinking_on_claude(model: Any, effort: str | None, wanted: dict[str, Any]) -> None:
    request = anthropic.message_request(Call(model, ASKED, effort=effort))

    assert {key: request[key] for key in ("thinking", "output_config") if key in request} == wanted


@pytest.mark.parametrize(
    "model, effort, wanted",
    [(LUNA, None, None), (LUNA, "none", "none"), (ASTRA, "none", "low"), (ASTRA, "high", "high")],
)
def test_effort_on_gpt(model: Any, effort: str | None, wanted: str | None) -> None:
    assert openai.completion_request(Call(model, ASKED, effort=effort)).get("reasoning_effort") == wanted


def test_an_unknown_effort_is_rejected_with_what_to_write_instead() -> None:
    with pytest.raises(Rejected, match=r"claude-opus-5-5 does not take effort 'minimal'; it takes: none, low, .*max"):
        anthropic.message_request(Call(OPUS, ASKED, effort="minimal"))


def test_no_request_asks_for_more_output_than_the_model_has() -> None:
    assert anthropic.message_request(Call(OLD_HAIKU, ASKED, max_output_tokens=900_000))["max_tokens"] == 64_000
    assert openai.completion_request(Call(LUNA, ASKED, max_output_tokens=900_000))["max_completion_tokens"] == 128_000


def test_openai_is_told_not_to_keep_the_answer_and_which_tier_to_use() -> None:
    plain = openai.completion_request(Call(LUNA, ASKED))
    flex = openai.completion_request(Call(LUNA, ASKED, service="flex"))

    assert (plain["store"], plain["service_tier"], flex["service_tier"]) == (False, "default", "flex")


def test_a_compatible_server_is_sent_only_what_all_of_them_know() -> None:
    call = Call(
        LUNA, ASKED, system="s", effort="low", json_schema={"type": "object", "properties": {"a": {"type": "string"}}}
    )

    request = openai.completion_request(call, compatible=True)

    assert set(request) == {"model", "messages", "max_tokens", "response_format"}


def test_strict_is_claimed_only_where_every_property_is_required() -> None:
    optional = {"type": "object", "properties": {"a": {"type": "string"}}}
    for schema, wanted in ((optional, False), ({**optional, "required": ["a"]}, True)):
        form = openai.completion_request(Call(LUNA, ASKED, json_schema=schema))["response_format"]
        assert form["json_schema"]["strict"] is wanted


@pytest.mark.parametrize(
    "key, url",
    [("", None), (" ", None), ("schlüssel", None), ("a\nb", None), ("key", "127.0.0.1:8000"), ("key", "ftp://x")],
)
def test_a_key_or_url_that_cannot_work_is_refused_at_the_start(key: str, url: str | None) -> None:
    for make in (anthropic.AnthropicProvider, openai.OpenAIProvider):
        with pytest.raises(ConfigError):
            make(key, url)


# Usage --------------------------------------------------------------------------------------------------------------

COUNTS = st.integers(0, 10**6)


@given(COUNTS, COUNTS, COUNTS, COUNTS, COUNTS)
def test_claudes_prompt_is_the_sum_of_its_parts(plain: int, read: int, short: int, long: int, output: int) -> None:
    usage = anthropic.usage_of(
        {
            "input_tokens": plain,
            "cache_read_input_tokens": read,
            "cache_creation_input_tokens": short + long,
            "cache_creation": {"ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": long},
            "output_tokens": output,
        }
    )

    assert usage == Usage(plain, output, read, short, long, 0)
    assert usage.prompt_tokens == plain + read + short + long


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_gpts_prompt_includes_what_was_cached(plain: int, read: int, written: int, output: int) -> None:
    usage = openai.usage_of(
        {
            "prompt_tokens": plain + read + written,
            "completion_tokens": output,
            "prompt_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
        }
    )

    assert usage == Usage(plain, output, read, written)
    assert usage.prompt_tokens == plain + read + written


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                [
                    "input_tokens",
                    "output_tokens",
                    "prompt_tokens",
                    "completion_tokens",
                    "prompt_tokens_details",
                    "cached_tokens",
                    "cache_creation",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_no_usage_makes_an_error_or_a_negative_count(value: Any) -> None:
    for read in (anthropic.usage_of, openai.usage_of):
        usage = read(value)
        assert usage is None or min(usage.prompt_tokens, usage.output_tokens, usage.input_tokens) >= 0


# Headers ------------------------------------------------------------------------------------------------------------


@given(st.text(max_size=20) | st.floats().map(str) | st.integers().map(str))
def test_any_retry_after_is_a_bounded_wait_or_nothing(value: str) -> None:
    for name in ("retry-after", "retry-after-ms"):
        seconds = retry_after_s({name: value}, now=NOW)

        assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER_S


@given(st.integers(-(10**6), 10**6))
def test_a_date_is_the_wait_until_then(offset: int) -> None:
    value = format_datetime(NOW + timedelta(seconds=offset), usegmt=True)

    assert retry_after_s({"retry-after": value}, now=NOW) == min(max(offset, 0), MAX_RETRY_AFTER_S)


@given(st.text(max_size=20))
def test_any_limit_header_is_a_count_or_nothing(value: str) -> None:
    limits = anthropic_limits({"anthropic-ratelimit-requests-remaining": value})

    assert limits.requests_remaining is None or limits.requests_remaining >= 0


@pytest.mark.parametrize(
    "headers, wanted",
    [
        ({"x-ratelimit-limit-tokens": "100", "x-ratelimit-remaining-tokens": "0"}, 0),
        ({"x-ratelimit-limit-tokens": "0", "x-ratelimit-remaining-tokens": "0"}, None),
        ({"x-ratelimit-limit-tokens": "-1", "x-ratelimit-remaining-tokens": "-1"}, None),
        ({"x-ratelimit-remaining-tokens": "55"}, 55),
        ({}, None),
    ],
)
def test_zero_of_an_unknown_limit_is_not_believed(headers: dict[str, str], wanted: int | None) -> None:
    assert openai_limits(headers).tokens_remaining == wanted


# Text ---------------------------------------------------------------------------------------------------------------


@given(st.text(), st.integers(1, 5))
def test_text_cut_anywhere_even_inside_a_character_comes_out_whole(text: str, size: int) -> None:
    units = text.encode("utf-16-be", "surrogatepass")
    pieces = [units[n : n + 2 * size].decode("utf-16-be", "surrogatepass") for n in range(0, len(units), 2 * size)]
    joined = Text()

    out = [joined.add(piece) for piece in pieces] + [joined.end()]

    assert "".join(out) == joined.whole == text


@given(st.lists(st.text(st.characters(codec=None, categories=("Cs", "Ll", "Lo")), max_size=4), max_size=5))
def test_whatever_pieces_come_the_text_is_valid_unicode(pieces: list[str]) -> None:
    joined = Text()

    out = [joined.add(piece) for piece in pieces] + [joined.end()]

    joined.whole.encode("utf-8")
    assert "".join(out) == joined.whole
