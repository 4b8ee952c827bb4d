"""What a batch's requests became, as the lines of its result files: read from the ledger page by page, in their order."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from producers.gateway.answer import refusal_for
from producers.gateway.errors import Kind, Refusal, error_body, status_of
from waybill.client import AsyncClient
from waybill.ledger import batches, queries

PAGE: Final = 200


@dataclass(frozen=True, slots=True)
class Ended:
    """One request: an answer in its dialect, a refusal, or neither (`kind` cancelled or expired)."""

    seq: int
    custom_id: str
    kind: str
    answer: Mapping[str, Any] | None = None
    refusal: Refusal | None = None


async def ended_rows(client: AsyncClient, batch: Mapping[str, Any]) -> AsyncIterator[Ended]:
    """All requests of a batch that has ended."""
    after = -1
    while rows := await client.ledger.fetch(
        batches.PAGE, {"id": batch["id"], "run": batch["run"], "after": after, "limit": PAGE}
    ):
        ids = [row["id"] for row in rows if row["id"] is not None]
        found = await client.ledger.fetch(queries.OUTCOMES, {"ids": ids, "with_payload": False})
        outcomes = {row["id"]: dict(row) for row in found}
        for row in rows:
            yield _ended(dict(row), outcomes.get(row["id"]))
        after = rows[-1]["seq"]


def _ended(row: Mapping[str, Any], outcome: Mapping[str, Any] | None) -> Ended:
    seq, custom_id = row["seq"], row["custom_id"]
    if row["refused"] is not None:
        return Ended(seq, custom_id, "errored", refusal=load_refusal(row["refused"]))
    if row["id"] is None or row["state"] == "cancelled" or outcome is None:
        return Ended(seq, custom_id, "canceled")  # the provider's spelling
    if outcome["state"] == "succeeded" and outcome["body"] is None:
        gone = Refusal(
            Kind.NOT_FOUND, f"the answer of job {row['id']} was deleted: its time was over (waybill retention)"
        )
        return Ended(seq, custom_id, "errored", refusal=gone)
    if outcome["state"] == "succeeded":
        answer = json.loads(outcome["body"]).get("wire")
        if answer is not None:
            return Ended(seq, custom_id, "succeeded", answer=answer)
        lost = Refusal(Kind.SERVER_ERROR, f"the answer of job {row['id']} is not in the dialect that was asked for")
        return Ended(seq, custom_id, "errored", refusal=lost)
    if outcome["error_code"] == "deadline":
        return Ended(seq, custom_id, "expired")
    end = {"state": outcome["state"], "code": outcome["error_code"], "error": outcome["error"]}
    return Ended(seq, custom_id, "errored", refusal=refusal_for(row["id"], end))


def dump_refusal(refusal: Refusal) -> str:
    """A refusal as `batch_rows.error` keeps it."""
    return json.dumps(
        {"kind": refusal.kind.value, "message": refusal.message, "param": refusal.param, "code": refusal.code}
    )


def load_refusal(text: str) -> Refusal:
    """The inverse of `dump_refusal`."""
    kept = json.loads(text)
    return Refusal(Kind(kept["kind"]), kept["message"], param=kept["param"], code=kept["code"])


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


async def output_lines(client: AsyncClient, batch: Mapping[str, Any], *, wants_errors: bool) -> AsyncIterator[bytes]:
    """OpenAI's output file, or its error file."""
    async for row in ended_rows(client, batch):
        if (row.kind != "succeeded") == wants_errors:
            yield openai_line(batch["id"], row)


def openai_line(batch_id: str, row: Ended) -> bytes:
    """One line of OpenAI's files."""
    request_id = f"batch_req_{batch_id.removeprefix('batch_')}_{row.seq}"
    line: dict[str, Any] = {"id": request_id, "custom_id": row.custom_id, "response": None, "error": None}
    if row.answer is not None:
        line["response"] = {"status_code": 200, "request_id": request_id, "body": row.answer}
    elif row.refusal is not None:
        body = error_body(row.refusal, "openai", request_id)
        line["response"] = {"status_code": status_of(row.refusal, "openai"), "request_id": request_id, "body": body}
        line["error"] = {"code": body["error"]["code"], "message": body["error"]["message"]}
    elif row.kind == "expired":
        message = "This request could not be executed before the completion window expired."
        line["error"] = {"code": "batch_expired", "message": message}
    else:
        message = "This request was not executed because the batch was cancelled."
        line["error"] = {"code": "batch_cancelled", "message": message}
    return _line(line)


async def anthropic_lines(client: AsyncClient, batch: Mapping[str, Any]) -> AsyncIterator[bytes]:
    """Anthropic's results."""
    async for row in ended_rows(client, batch):
        result: dict[str, Any] = {"type": row.kind}
        if row.answer is not None:
            result["message"] = row.answer
        elif row.refusal is not None:
            result["error"] = error_body(row.refusal, "anthropic", f"req_{batch['id'].removeprefix('msgbatch_')}")
        yield _line({"custom_id": row.custom_id, "result": result})
