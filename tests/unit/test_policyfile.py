"""The policy file: the one that ships is right, and a wrong one is refused with file, line or key and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from policies.catalog import CATALOG
from policies.policyfile import parse
from waybill.errors import ConfigError

SHIPPED = Path(__file__).parent.parent.parent / "policies" / "default.toml"
HEAD = 'version = "1"\nflagship = "claude-opus-5-5"\n'
PLAN = '[intents.extraction]\nchain = ["claude-haiku-5-5"]\nreason = "cheap"\n'


def test_the_shipped_policy_routes_as_documented() -> None:
    policy = parse(SHIPPED.read_text(), SHIPPED.name)

    first = {intent: plan.chain[0] for intent, plan in policy.plans.items()}
    assert first == {
        "extraction": "claude-haiku-5-5",
        "summarization": "claude-sonnet-5-5",
        "reasoning": "claude-opus-5-5",
        "classification": "label-head",
        "openai-only": "gpt-5.5",
        "auto": "claude-opus-5-5",
    }
    assert policy.plans["classification"].chain[1:3] == ("smollm2-135m-instruct", "claude-haiku-5-5")
    assert policy.flagship == "claude-opus-5-5"


def test_the_catalogue_names_the_models_the_field_uses() -> None:
    assert {"claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5", "gpt-5.5", "gpt-6-luna", "gpt-6.2-sol"} <= set(
        CATALOG
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("version = ", "p.toml: not valid TOML"),
        ('version = "1"\n[intents.a]\n', "`flagship` is missing"),
        (HEAD, "`intents` is missing"),
        (
            HEAD + PLAN + "[audits]\nshare = 2\n",
            "p.toml:7: `audits.share` must be a share from 0 (none) to 1, such as 0.02, not 2",
        ),
        (HEAD + PLAN + "[audits]\nbudget_usd_per_day = true\n", "`audits.budget_usd_per_day` must be USD from 0"),
        (HEAD + PLAN + "[audits]\nrate = 1\n", "write one of: share, budget_usd_per_day"),
        (HEAD + "[intents]\n", "is empty; add at least one table such as [intents.extraction]"),
        (
            HEAD.replace("claude-opus-5-5", "opus") + PLAN,
            "p.toml:2: `flagship` names the unknown model 'opus'; known: claude-",
        ),
        (
            HEAD + PLAN + "colour = 1\n",
            "p.toml:6: `intents.extraction.colour` is not a key of this table; write one of: chain",
        ),
        (HEAD + PLAN.replace('["claude-haiku-5-5"]', "[]"), "must be a list of model ids"),
        (
            HEAD + PLAN.replace("haiku-5-5", "haiku-9"),
            "p.toml:4: `intents.extraction.chain` names the unknown model 'claude-haiku-9'",
        ),
        (HEAD + PLAN.replace('"]', '", "claude-haiku-5-5"]'), "names a model twice"),
        (HEAD + PLAN.replace('reason = "cheap"\n', ""), "`intents.extraction.reason` must be a text"),
        (HEAD + PLAN + "effort = 'huge'\n", "must be one of none, minimal, low"),
        (HEAD + PLAN + "max_output_tokens = 0\n", "must be a whole number from 1 to 128000, not 0"),
        (HEAD + "max_attempts = true\n" + PLAN, "`max_attempts` must be a whole number"),
        (HEAD + '[intents."Big Work"]\n', "is no intent name"),
        (
            HEAD + PLAN + '[models.mine]\nprovider = "azure"\n',
            "`models.mine.provider` must be one of anthropic, openai, local",
        ),
        (HEAD + PLAN + '[prices."gpt-5.5"]\ninput = -1\noutput = 1\n', "must be USD per million tokens, 0 or more"),
        (HEAD + PLAN + '[prices."gpt-5.5"]\noutput = 1\n', "`prices.gpt-5.5.input` is missing"),
        (HEAD + PLAN + "[prices.zzz]\ninput = 1\noutput = 1\n", "names the unknown model 'zzz'"),
    ],
)
def test_a_wrong_policy_is_refused_with_the_place_and_the_remedy(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "p.toml")

    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_of_ones_own_can_be_described() -> None:
    policy = parse(
        HEAD + '[models."mistral-7b"]\nprovider = "local"\ncontext_tokens = 32768\n'
        '[intents.classification]\nchain = ["mistral-7b"]\nreason = "ours"\n',
        "p.toml",
    )

    assert policy.models["mistral-7b"].services == ("local",)
    assert policy.models["mistral-7b"].context_tokens == 32768
