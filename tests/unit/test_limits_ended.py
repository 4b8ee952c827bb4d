"""What the limiter is told about a call that ended: who counts which tokens, and what a refusal means."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from policies.catalog import CATALOG
from policies.fallback import History
from policies.limits import Need
from waybill.contract import Candidate, Job, Message, Usage
from waybill.errors import Broken, ProviderError, Rejected, Throttled, Unavailable
from workers.admission import ended_of, is_limited
from workers.attempt import Attempt
from workers.limiter import Ended, Grant, LimitLane
from workers.providers.base import Answer, Call, Limits, Stop

GRANT = Grant(LimitLane("anthropic:a:m", (), "{}"), "job:1", Need(1000, 4000), "")
USAGE = Usage(input_tokens=10, cache_read_tokens=300, cache_write_tokens=40, cache_write_1h_tokens=5, output_tokens=60)
LIMITS = Limits(requests_remaining=5)


def attempt(
    model: str = "claude-haiku-5-5", *, failure: ProviderError | None = None, usage: Usage | None = None
) -> Attempt:
    route = (Candidate(CATALOG[model].provider, model, "interactive", "test"),)
    made = Attempt(
        job_id="job",
        number=1,
        token=1,
        route=route,
        index=0,
        intent="extraction",
        priority="lo",
        payload_bytes=100,
        job=Job(intent="extraction", prompt="x"),
        history=History(route, 0, used=1, max_attempts=5),
        started=0.0,
        started_at=datetime(2026, 11, 23, tzinfo=UTC),
        call=Call(CATALOG[model], (Message(role="user", content="x"),)),
        grant=GRANT,
        called=True,
    )
    if failure is not None:
        made.failure = failure
    else:
        made.answer = Answer("text", Stop.COMPLETE, usage, model, limits=LIMITS)
    return made


def test_claudes_cache_reads_do_not_count_as_input() -> None:
    assert ended_of(attempt(usage=USAGE), GRANT) == Ended("ok", 55, 60, limits=LIMITS)


def test_openais_cached_tokens_do() -> None:
    assert ended_of(attempt("gpt-6-luna", usage=USAGE), GRANT) == Ended("ok", 355, 60, limits=LIMITS)


def test_an_answer_without_usage_costs_what_was_reserved() -> None:
    assert ended_of(attempt(), GRANT) == Ended("ok", 1000, 4000)


def test_a_call_that_was_not_made_gives_everything_back() -> None:
    unused = attempt()
    unused.called = False

    assert ended_of(unused, GRANT) == Ended("unused")


@pytest.mark.parametrize(
    ("failure", "ended"),
    [
        (Throttled("later", code="rate_limit", retry_after_s=7), Ended("throttled", retry_s=7)),
        (Throttled("later", code="ramp_limit", retry_after_s=0), Ended("throttled", retry_s=0)),
        (Throttled("later", code="rate_limit", retry_after_s=None), Ended("throttled", retry_s=1)),
        # Flex without capacity says nothing about our quota.
        (Throttled("later", code="no_capacity", retry_after_s=None), Ended("overloaded")),
        (Unavailable("529", code="overloaded"), Ended("overloaded")),
        (Unavailable("refused", code="connection"), Ended("failed")),
        (Rejected("too long", code="context_length"), Ended("failed")),
        # Whether the model ran is not known: what was reserved stays taken.
        (Broken("cut", code="cut_body", billed=None), Ended("failed", 1000, 4000)),
        (Broken("empty", code="empty", billed=True, usage=USAGE), Ended("failed", 55, 60)),
    ],
)
def test_a_failure_tells_what_it_knows(failure: ProviderError, ended: Ended) -> None:
    assert ended_of(attempt(failure=failure), GRANT) == ended


def test_our_own_models_are_not_limited() -> None:
    assert not is_limited(attempt("smollm2-135m-instruct"))
    assert is_limited(attempt())
