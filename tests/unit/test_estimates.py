"""Estimates start from the catalogue, follow what answers used, and never need a tokenizer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.catalog import CATALOG
from policies.estimates import FRAMING_TOKENS, TRAINED, Estimates
from waybill.contract import Usage

HAIKU = CATALOG["claude-haiku-5-5"]


def trained(*, tokens_per_byte: float = 0.5, outputs: list[int] | None = None) -> Estimates:
    estimates = Estimates()
    for output in outputs or [100] * 40:
        usage = Usage(input_tokens=FRAMING_TOKENS + int(1000 * tokens_per_byte), output_tokens=output)
        estimates.observe(HAIKU.id, "extraction", 1000, usage)
    return estimates


def test_an_untrained_estimate_is_the_catalogues() -> None:
    need = Estimates().need(
        HAIKU, "extraction", payload_bytes=2500, max_output_tokens=4096, output_counted="as_generated"
    )

    assert Estimates().input_tokens(HAIKU, "extraction", 2500) == 1000 + FRAMING_TOKENS
    assert need.input == 1118  # 1,016 and a tenth
    assert need.output == 4096
    assert need.least_input == 660


def test_a_trained_estimate_follows_what_answers_used() -> None:
    estimates = trained(tokens_per_byte=0.5)

    assert estimates.input_tokens(HAIKU, "extraction", 2000) == 1000 + FRAMING_TOKENS


def test_other_intents_are_not_touched() -> None:
    estimates = trained(tokens_per_byte=3.0)

    assert estimates.input_tokens(HAIKU, "reasoning", 2500) == 1000 + FRAMING_TOKENS


def test_the_output_is_what_nine_of_ten_answers_do_not_exceed() -> None:
    estimates = trained(outputs=[*range(1, 11)] * 4)

    assert estimates.output_tokens(HAIKU, "extraction", 4096) == 9
    assert estimates.output_tokens(HAIKU, "extraction", 5) == 5


def test_a_provider_that_charges_max_tokens_at_the_start_is_asked_for_so_much() -> None:
    estimates = trained(outputs=[50] * 20)

    need = estimates.need(HAIKU, "extraction", payload_bytes=100, max_output_tokens=4096, output_counted="at_start")

    assert need.output == 4096


def test_texts_that_vary_get_a_wider_margin() -> None:
    steady, varied = trained(), Estimates()
    for number in range(40):
        tokens = 300 if number % 2 else 700
        varied.observe(HAIKU.id, "extraction", 1000, Usage(input_tokens=FRAMING_TOKENS + tokens, output_tokens=1))

    def margin(estimates: Estimates) -> float:
        need = estimates.need(HAIKU, "extraction", payload_bytes=1000, max_output_tokens=1, output_counted="at_start")
        return need.input / estimates.input_tokens(HAIKU, "extraction", 1000)

    assert margin(steady) == pytest.approx(1.1, abs=0.01)
    assert margin(varied) > 1.5


def test_cached_tokens_are_part_of_the_prompt() -> None:
    estimates = Estimates()
    for _ in range(40):
        usage = Usage(input_tokens=FRAMING_TOKENS, cache_read_tokens=400, cache_write_tokens=100, output_tokens=1)
        estimates.observe(HAIKU.id, "extraction", 1000, usage)

    assert estimates.input_tokens(HAIKU, "extraction", 1000) == 500 + FRAMING_TOKENS


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**5)), max_size=50),
    st.integers(0, 10**7),
    st.integers(1, 128_000),
)
def test_a_need_is_never_negative_and_the_sure_part_never_above_it(
    answers: list[tuple[int, int, int]], payload_bytes: int, max_output: int
) -> None:
    estimates = Estimates()
    for size, prompt, output in answers:
        estimates.observe(HAIKU.id, "extraction", size, Usage(input_tokens=prompt, output_tokens=output))

    need = estimates.need(
        HAIKU,
        "extraction",
        payload_bytes=payload_bytes,
        max_output_tokens=max_output,
        output_counted="as_generated",
    )

    assert 0 <= need.least_input <= need.input
    assert 0 <= need.output <= max_output


def test_what_one_process_learned_another_starts_from() -> None:
    teacher, pupil = trained(tokens_per_byte=0.5, outputs=[70] * 10), Estimates()

    pupil.adopt(teacher.snapshot())

    assert pupil.input_tokens(HAIKU, "extraction", 2000) == teacher.input_tokens(HAIKU, "extraction", 2000)
    assert pupil.output_tokens(HAIKU, "extraction", 4096) == 70


def test_who_knows_better_does_not_take_over_what_others_learned() -> None:
    mine = trained(tokens_per_byte=0.5)

    mine.adopt(trained(tokens_per_byte=2.0).snapshot())

    assert mine.input_tokens(HAIKU, "extraction", 1000) == 500 + FRAMING_TOKENS


@pytest.mark.parametrize(
    "text", ["", "nonsense", "[]", "[1]", '["a",0,0,9]', "[-1,0,0,9]", "[0.5,0,0,1]", "null", "{}"]
)
def test_garbage_from_the_shared_store_is_left_alone(text: str) -> None:
    estimates = Estimates()

    estimates.adopt({f"{HAIKU.id} extraction": text, "no-intent": "[0.5,0,10,9]"})

    assert estimates.snapshot() == {}


def test_few_answers_do_not_replace_the_start_value() -> None:
    estimates = trained(outputs=[1] * (TRAINED - 1))

    assert estimates.output_tokens(HAIKU, "extraction", 4096) == 4096
    assert estimates.snapshot() == {}
