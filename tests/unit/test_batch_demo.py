"""The demo's documents fit their prompts, schema, labels and answer book."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from producers.batch import BatchSpec, check
from producers.demo import ANSWERS, HERE, demo_specs
from producers.inputs import open_source
from producers.policy import load_policy
from producers.template import parse
from waybill.client import AsyncClient
from waybill.settings import Settings

POLICY = load_policy(Settings())
BOOK: list[dict[str, Any]] = [json.loads(line) for line in ANSWERS.read_text(encoding="utf-8").splitlines()]
CLIENT = AsyncClient("postgresql://u@127.0.0.1:9/none", "redis://127.0.0.1:9/0")
SPECS = {spec.intent: spec for spec in demo_specs(HERE.parent, POLICY)}


def rows(intent: str) -> list[dict[str, Any]]:
    return [dict(row.fields) for row in open_source(SPECS[intent].input).rows()]


def prompts(spec: BatchSpec) -> list[str]:
    return [parse(spec.prompt, "p").render(row) for row in rows(spec.intent)]


def answers(intent: str, model: str = "*") -> list[str]:
    """The recorded answer for each row; the row must have exactly one."""
    found = []
    for prompt in prompts(SPECS[intent]):
        fitting = [entry for entry in BOOK if entry["model"] == model and entry["match"] in prompt]
        assert len(fitting) == 1, prompt
        found.append(fitting[0]["answer"])
    return found


def test_there_are_about_sixty_documents_over_four_intents() -> None:
    assert set(SPECS) == {"extraction", "summarization", "reasoning", "classification"}
    assert 55 <= sum(len(rows(intent)) for intent in SPECS) <= 70


@pytest.mark.parametrize("intent", ["extraction", "summarization", "reasoning", "classification"])
def test_a_run_passes_the_checks(intent: str, tmp_path: Path) -> None:
    spec = next(spec for spec in demo_specs(tmp_path, POLICY) if spec.intent == intent)

    assert check(spec, CLIENT).survey.first_problem is None


def test_no_entry_fits_two_documents() -> None:
    everything = [prompt for spec in SPECS.values() for prompt in prompts(spec)]

    assert len({(entry["match"], entry["model"]) for entry in BOOK}) == len(BOOK)
    for entry in BOOK:
        assert sum(entry["match"] in prompt for prompt in everything) == 1, entry["match"]


def test_extracted_answers_fit_the_schema_and_add_up() -> None:
    validator = Draft202012Validator(SPECS["extraction"].schema or {})

    for answer in answers("extraction"):
        data = json.loads(answer)
        validator.validate(data)
        assert sum(item["amount"] for item in data["items"]) == pytest.approx(data["total"])


def test_the_cheapest_model_breaks_the_schema_now_and_then() -> None:
    validator = Draft202012Validator(SPECS["extraction"].schema or {})
    given = [entry["answer"] for entry in BOOK if entry["model"] == "claude-haiku-5-5" and "kind" in entry["answer"]]

    verdicts = Counter(validator.is_valid(json.loads(answer)) for answer in given)

    assert verdicts[False] >= 2
    assert verdicts[True] >= 1  # right in form and wrong in fact: a check of the form cannot see it


def test_reasoning_answers_end_with_what_is_expected() -> None:
    for row, answer in zip(rows("reasoning"), answers("reasoning"), strict=True):
        assert re.search(r"^Answer: (.+)\Z", answer, re.MULTILINE)[1] == row["expected"]  # type: ignore[index]  # a missing match fails the test


def test_labels_are_as_expected_and_personal_data_stays_local() -> None:
    documents = rows("classification")

    assert [row["expected"] for row in documents] == answers("classification")
    assert {row["expected"] for row in documents} == set(SPECS["classification"].labels)
    assert 3 <= sum(row["private"] for row in documents) <= len(documents) // 2
