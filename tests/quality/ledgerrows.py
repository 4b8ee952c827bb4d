"""Writes finished jobs into a ledger as a fleet would have left them, and reads tables, for tests of what is learned."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from typing import Any, Self

import psycopg

from waybill.contract import new_job_id
from waybill.ledger.engine import parse_url

_times = itertools.count(1_790_000_000_000)


class LedgerRows:
    """A plain connection to a migrated ledger."""

    def __init__(self, database_url: str) -> None:
        url = parse_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
        self._connection = psycopg.connect(url, autocommit=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def all(self, sql: str, *params: Any) -> list[tuple[Any, ...]]:
        """All rows of a statement."""
        found = self._connection.execute(sql, params or None)
        return found.fetchall() if found.description else []

    def job(
        self,
        intent: str,
        attempts: Sequence[tuple[str, str, str]],
        *,
        text: str = "answer",
        data: Any = None,
        prompt: str = "prompt",
        detail: dict[str, Any] | None = None,
        flagship_usd: str | None = None,
        cascade: int | None = None,
        tenant: str = "default",
        **fields: Any,
    ) -> str:
        """A finished job whose attempts were (model, state, USD) in order; the last one answered if it succeeded.

        Args:
            detail: Of the routing decision.
            flagship_usd: Of the attempt that answered.
            cascade: Number of the learned cascade that it began with.
            fields: Further fields of the payload.
        """
        job_id = new_job_id(next(_times), os.urandom(10))
        state = "succeeded" if attempts and attempts[-1][1] == "succeeded" else "failed"
        route = [
            {"provider": _provider(model), "model": model, "service": "interactive", "reason": "r", "estimate_usd": "0"}
            | ({} if cascade is None else {"cascade": cascade})
            for model in dict.fromkeys(model for model, _, _ in attempts)
        ]
        self.all("set session_replication_role = replica")  # the trigger lets jobs begin as `queued` only
        self.all(
            "insert into jobs (id, tenant, intent, state, priority, request_hash, payload_bytes, route, attempt, needs,"
            " finished_at) values (%s, %s, %s, %s, 'lo', '', %s, %s, %s, %s, now())",
            job_id, tenant, intent, state, len(prompt), json.dumps(route), len(attempts),
            ["labels"] if fields.get("labels") else [],
        )  # fmt: skip
        self.all("set session_replication_role = origin")
        payload = {"intent": intent, "prompt": prompt, **fields}
        self.all("insert into payloads values (%s, %s)", job_id, json.dumps(payload))
        for number, (model, attempt_state, usd) in enumerate(attempts, start=1):
            answered = attempt_state == "succeeded"
            self.all(
                "insert into attempts (job_id, number, provider, model, service, reason, state, worker, ended_at,"
                " cost_usd, cost_source, flagship_usd, estimate_usd, input_tokens, output_tokens)"
                " values (%s, %s, %s, %s, %s, 'r', %s, 'w', now(), %s, 'usage', %s, 0, 100, 10)",
                job_id, number, _provider(model), model, "local" if _provider(model) == "local" else "interactive",
                attempt_state, usd, flagship_usd if answered else None,
            )  # fmt: skip
            if answered:
                body = json.dumps({"text": text, "data": data})
                self.all("insert into results values (%s, %s, %s)", job_id, number, body)
        self.all(
            "insert into decisions (job_id, outcome, reason, detail, policy_version) values (%s, 'route', 'r', %s, 'p')",
            job_id, json.dumps(detail or {}),
        )  # fmt: skip
        return job_id

    def finish(self, job_id: str, model: str, *, text: str | None, data: Any = None, usd: str = "0") -> None:
        """End a job that was submitted as if a model had answered it; without a text, as failed."""
        state = "failed" if text is None else "succeeded"
        self.all("set session_replication_role = replica")
        self.all(
            "update jobs set state = %s, attempt = 1, finished_at = now(), route = '[]' where id = %s", state, job_id
        )
        self.all("set session_replication_role = origin")
        self.all(
            "insert into attempts (job_id, number, provider, model, service, reason, state, worker, ended_at, cost_usd,"
            " cost_source, estimate_usd) values (%s, 1, %s, %s, 'batch', 'r', %s, 'w', now(), %s, 'usage', 0)",
            job_id, _provider(model), model, "succeeded" if text is not None else "failed", usd,
        )  # fmt: skip
        if text is not None:
            self.all("insert into results values (%s, 1, %s)", job_id, json.dumps({"text": text, "data": data}))


def _provider(model: str) -> str:
    return "anthropic" if model.startswith("claude") else "openai" if model.startswith("gpt") else "local"
