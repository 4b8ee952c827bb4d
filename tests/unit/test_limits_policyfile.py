"""The table [limits] of the policy file: what it says is taken, what is wrong in it is named with the remedy."""

from __future__ import annotations

import pytest

from policies.limits import LimitSpec
from policies.policyfile import parse
from waybill.errors import ConfigError

BASE = """version = "1"
flagship = "claude-opus-5-5"
[intents.extraction]
chain = ["claude-haiku-5-5"]
reason = "cheap"
"""


def test_limits_are_read_by_model_class_and_star() -> None:
    text = BASE + (
        '[limits."claude-opus-5-5"]\nrequests_per_minute = 1000\noutput_tokens_per_minute = 100_000\nburst_s = 30\n'
        '[limits."claude-fable-5.x"]\ntokens_per_minute = 5\noutput_counted = "as_generated"\n'
        '[limits."*"]\ninteractive_reserve = 0.25\nin_flight = 7\n'
    )

    limits = parse(text, "policy.toml").limits

    assert limits["claude-opus-5-5"] == LimitSpec(1000, None, 100_000, None, 30.0)
    assert limits["claude-fable-5.x"] == LimitSpec(tokens_per_minute=5, output_counted="as_generated")
    assert limits["*"] == LimitSpec(interactive_reserve=0.25, in_flight=7)


def test_without_the_table_everything_is_learned() -> None:
    assert parse(BASE, "policy.toml").limits == {}


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ('[limits."gpt-9"]\nburst_s = 1', "names the unknown model 'gpt-9'"),
        ('[limits."*"]\nrpm = 1', "is not a key of this table; write one of: requests_per_minute"),
        ('[limits."*"]\nrequests_per_minute = 0', "must be a whole number from 1"),
        ('[limits."*"]\nrequests_per_minute = 1.5', "must be a whole number from 1"),
        ('[limits."*"]\nburst_s = 0.5', "must be a number from 1 to 3600"),
        ('[limits."*"]\nburst_s = true', "must be a number from 1 to 3600"),
        ('[limits."*"]\ninteractive_reserve = 1', "must be a number from 0 to 0.9"),
        ('[limits."*"]\nin_flight = 0', "must be a whole number from 1"),
        ('[limits."*"]\noutput_counted = "later"', "must be at_start or as_generated"),
        ("limits = 3", "must hold tables, such as [limits.name]"),
    ],
)
def test_a_wrong_table_is_refused_with_the_remedy(table: str, says: str) -> None:
    text = f"{table}\n{BASE}" if table.startswith("limits") else BASE + table

    with pytest.raises(ConfigError) as caught:
        parse(text, "policy.toml")

    assert says in str(caught.value)
    assert "policy.toml" in str(caught.value)
