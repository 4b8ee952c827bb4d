"""The whole story of one job, read from the ledger: for `waybill why` and, later, the dashboard."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import Any, Final

from waybill.ledger.engine import Ledger

_JOB: Final = """
select id::text, tenant, intent, state, priority, model as pinned, local_only, quality, payload_bytes, deadline_at, route,
       route_index, attempt, used, losses, lease_owner, lease_until, not_before, cancel_requested, error_code, error,
       submitted_at, finished_at, run_id::text, seq
from jobs where id::text like %(prefix)s limit 2
"""
_DECISIONS: Final = """
select at, attempt, outcome, reason, detail, policy_version from decisions where job_id = %(id)s order by id
"""
_ATTEMPTS: Final = """
select number, provider, model, service, reason, state, worker, started_at, ended_at, first_token_s, served_model,
       request_id, stop, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, cache_write_1h_tokens,
       thinking_tokens, cost_usd, cost_source, flagship_usd, cpu_s, price_version, error_code, error
from attempts where job_id = %(id)s order by number
"""


async def read_story(ledger: Ledger, job: str) -> dict[str, Any]:
    """Everything the ledger knows of a job, text of prompt and answer left out.

    Args:
        ledger: Where to look.
        job: Its id, or the beginning of it (at least 8 characters).

    Returns:
        `job` (a mapping), `decisions` and `attempts` (in order).

    Raises:
        LookupError: No such job, or the beginning fits several.
    """
    clean = job.strip().lower()
    if len(clean) < 8 or any(c not in "0123456789abcdef-" for c in clean):
        raise LookupError(
            f"{job!r} is no job id; give the id as `submit` printed it, or at least its first 8 characters"
        )
    found = await ledger.fetch(_JOB, {"prefix": f"{clean}%"})
    if not found:
        raise LookupError(f"no job {job} in this ledger")
    if len(found) > 1:
        raise LookupError(f"several jobs begin with {job}; give more of the id")
    row = dict(found[0])
    decisions: Sequence[Any] = await ledger.fetch(_DECISIONS, {"id": row["id"]})
    attempts: Sequence[Any] = await ledger.fetch(_ATTEMPTS, {"id": row["id"]})
    return {"job": row, "decisions": [dict(d) for d in decisions], "attempts": [dict(a) for a in attempts]}


WIDTH: Final = 110


def tell(story: dict[str, Any]) -> str:
    """The story as text for a person: one line per event, oldest first, then what it cost."""
    job = story["job"]
    asked = [
        f"intent {job['intent']}",
        f"tenant {job['tenant']}",
        "interactive" if job["priority"] == "hi" else "batch",
    ]
    if job["pinned"]:
        asked.append(f"pinned to {job['pinned']}")
    if job["local_only"]:
        asked.append("local models only")
    if job["quality"] is not None:
        asked.append(f"quality {job['quality']:g}")
    lines = [f"job {job['id']}: {job['state']}", f"  asked for    {', '.join(asked)}, {job['payload_bytes']:,} bytes"]
    if job["run_id"]:
        lines.append(f"  run          {job['run_id']}")
    start = job["submitted_at"]
    events = [(start, f"submitted {start:%Y-%m-%d %H:%M:%S} UTC")]
    events += [(decision["at"], _decision(decision, job)) for decision in story["decisions"]]
    events += [(attempt["started_at"], _begun(attempt)) for attempt in story["attempts"]]
    events += [
        (attempt["ended_at"], _ended(attempt)) for attempt in story["attempts"] if attempt["ended_at"] is not None
    ]
    # At equal times (one transaction writes both) the attempt's end comes before the decision it led to.
    order = {"attempt": 0, "->": 1}
    for at, text in sorted(events, key=lambda e: (e[0], order.get(text_kind(e[1]), 1))):
        lines += wrap(
            text, WIDTH, initial_indent=f"  {(at - start).total_seconds():>9.3f} s  ", subsequent_indent=" " * 15
        )
    lines.append(_cost(story))
    if job["error"] and job["state"] != "succeeded":
        lines += wrap(
            f"{job['error']} [{job['error_code']}]", WIDTH, initial_indent="  error        ", subsequent_indent=" " * 15
        )
    return "\n".join(lines)


def text_kind(text: str) -> str:
    """`attempt` or `->`: the first word of an event's line."""
    return text.split(" ", 1)[0]


def _decision(decision: dict[str, Any], job: dict[str, Any]) -> str:
    if decision["outcome"] == "route":
        chain = " > ".join(_lane(candidate) for candidate in job["route"] or [])
        passed = (decision["detail"] or {}).get("passed_over") or {}
        over = "".join(f"; passed over {model}: {why}" for model, why in passed.items())
        guess = (decision["detail"] or {}).get("guess")
        guessed = f"; intent guessed: {guess['intent']}, sure to {guess['confidence']:.0%}" if guess else ""
        return f"-> route {chain} (policy {decision['policy_version']}): {decision['reason']}{over}{guessed}"
    return f"-> {decision['outcome'].replace('_', ' ')}: {decision['reason']}"


def _lane(candidate: dict[str, Any]) -> str:
    """A model, with its service where that is not the usual one."""
    service = candidate["service"]
    return str(candidate["model"]) if service in ("interactive", "local") else f"{candidate['model']} {service}"


def _begun(attempt: dict[str, Any]) -> str:
    lane = f"{attempt['provider']}/{attempt['model']}/{attempt['service']}"
    # The first candidate's reason is the route's own, which stands one line above.
    why = f" ({attempt['reason']})" if attempt["number"] > 1 else ""
    return f"attempt {attempt['number']} on {lane}{why}"


def _ended(attempt: dict[str, Any]) -> str:
    seconds = (attempt["ended_at"] - attempt["started_at"]).total_seconds()
    parts = [f"attempt {attempt['number']} {attempt['state']} after {seconds:.3f} s"]
    if attempt["input_tokens"] is not None:
        cached = attempt["cache_read_tokens"] or 0
        prompt = (
            attempt["input_tokens"]
            + cached
            + (attempt["cache_write_tokens"] or 0)
            + (attempt["cache_write_1h_tokens"] or 0)
        )
        parts.append(
            f"{prompt:,} in" + (f" ({cached:,} cached)" if cached else "") + f", {attempt['output_tokens']:,} out"
        )
    parts.append(_money(attempt["cost_usd"], attempt["cost_source"]))
    if attempt["cpu_s"] is not None:
        parts.append(f"{attempt['cpu_s']:.3f} s of CPU")
    if attempt["served_model"] and attempt["served_model"] != attempt["model"]:
        parts.append(f"served by {attempt['served_model']}")
    if attempt["request_id"]:
        parts.append(str(attempt["request_id"]))
    if attempt["error"]:
        parts.append(f"[{attempt['error_code']}] {attempt['error']}")
    return ", ".join(parts)


def _money(usd: Any, source: str | None) -> str:
    if source == "unpriced":
        return "price unknown"
    if usd is None:
        return "cost not known yet"
    return f"${usd.normalize():f}" + (" (estimated)" if source == "estimated" else "")


def _cost(story: dict[str, Any]) -> str:
    attempts = story["attempts"]
    total = sum((attempt["cost_usd"] for attempt in attempts if attempt["cost_usd"] is not None), start=0)
    line = (
        f"  cost         ${total:f}".rstrip("0").rstrip(".")
        + f" over {len(attempts)} attempt{'s' * (len(attempts) != 1)}"
    )
    flagship = next((attempt["flagship_usd"] for attempt in attempts if attempt["flagship_usd"] is not None), None)
    if flagship:
        line += f"; the same tokens on the flagship: ${flagship.normalize():f}"
    return line
