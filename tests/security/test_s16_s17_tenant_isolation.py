"""S16, S17: tenants share neither answers nor prompt prefixes."""

from __future__ import annotations

from waybill.contract import Job
from waybill.question import question, stable_part


def asked(tenant: str, **more: object) -> Job:
    fields = {"intent": "extraction", "prompt": "x", "system": "s" * 5000, "reuse": True, "tenant": tenant, **more}
    return Job.model_validate(fields)


def test_s16_the_same_prompt_of_another_tenant_is_another_question() -> None:
    assert question(asked("acme")) == question(asked("acme"))
    assert question(asked("acme")) != question(asked("globex"))


def test_s16_model_parameters_schema_and_system_are_part_of_the_question() -> None:
    base = question(asked("acme"))
    changes: list[dict[str, object]] = [
        {"model": "gpt-6-luna"},
        {"max_output_tokens": 9},
        {"json_schema": {"type": "object"}},
        {"system": "other"},
        {"local_only": True},
        {"prompt": "y"},
    ]

    assert base not in [question(asked("acme", **change)) for change in changes]


def test_s17_jobs_of_two_tenants_are_never_grouped_by_their_common_beginning() -> None:
    """Both providers keep prompt caches by account; what we send together is by tenant as well (docs/tenants.md)."""
    first, second = stable_part(asked("acme")), stable_part(asked("globex"))

    assert first is not None
    assert second is not None
    assert first.key != second.key
