"""Made-up answers to a JSON schema: they always fit it, and take what the text offers."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from sandbox.schema import fill

RECEIPT = "ACME SDN BHD\nNo. 5, Jalan Besar\nDate: 12/03/2018\nTotal: RM 9.90\nPaid: yes"


def test_named_lines_of_the_text_become_values() -> None:
    schema = {
        "type": "object",
        "properties": {
            "company": {"type": "string"},
            "date": {"type": "string"},
            "total": {"type": "number"},
            "paid": {"type": "boolean"},
        },
    }

    assert fill(schema, RECEIPT) == {"company": "ACME SDN BHD", "date": "12/03/2018", "total": 9.9, "paid": True}


def test_the_enum_value_the_text_names_is_chosen() -> None:
    schema = {"type": "object", "properties": {"mood": {"enum": ["happy", "angry"]}}}

    assert fill(schema, "The customer is ANGRY about it") == {"mood": "angry"}


def test_a_schema_that_refers_to_itself_ends() -> None:
    schema = {
        "$ref": "#/$defs/node",
        "$defs": {"node": {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}]}}}},
    }

    assert isinstance(fill(schema, "x"), dict)


leaves: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({"type": "string"}),
    st.just({"type": "string", "maxLength": 5}),
    st.just({"type": ["string", "null"]}),
    st.just({"type": "integer", "minimum": 3, "maximum": 8}),
    st.just({"type": "number"}),
    st.just({"type": "boolean"}),
    st.just({"enum": ["red", "green"]}),
    st.just({"const": 7}),
    st.just({"anyOf": [{"type": "null"}, {"type": "integer"}]}),
)
schemas = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(lambda items: {"type": "array", "items": items, "minItems": 1}, inner),
        st.dictionaries(st.sampled_from(["total", "name", "date", "a_b"]), inner, min_size=1, max_size=3).map(
            lambda properties: {
                "type": "object",
                "properties": properties,
                "required": sorted(properties),
                "additionalProperties": False,
            }
        ),
    ),
    max_leaves=8,
)


@given(schema=schemas, text=st.one_of(st.just(RECEIPT), st.text(max_size=60)))
def test_the_instance_fits_the_schema_and_is_the_same_each_time(schema: dict[str, Any], text: str) -> None:
    instance = fill(schema, text)

    Draft202012Validator(schema).validate(instance)
    assert fill(schema, text) == instance
