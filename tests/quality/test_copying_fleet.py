"""A real fleet extracts with its own small model: copied values, alone where the text may not leave, else in shadow of the paid one."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from policies.goodenough import fingerprint
from sandbox.testing import running
from tests.fleet import running_fleet
from tests.quality.ledgerrows import LedgerRows
from waybill import Client, Job
from workers.providers.registry import default_local_model

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        find_spec("llama_cpp") is None or not default_local_model().is_file(),
        reason="the local lane is not built here; `./run local` does it",
    ),
]
SMALL, HAIKU = "smollm2-135m-instruct", "claude-haiku-5-5"
POLICY = f"""
version = "copying"
flagship = "claude-opus-5-5"
[intents.extraction]
chain = ["{SMALL}", "{HAIKU}"]
reason = "as declared"
max_output_tokens = 1024
grounded = true
"""
SCHEMA = {
    "type": "object",
    "properties": {"shop": {"type": "string"}, "total": {"type": "number"}},
    "required": ["shop", "total"],
    "additionalProperties": False,
}
RECEIPT = "Receipt\nShop: Cafe Blau\nCoffee 3.50\nTotal: 9.50"


def test_copied_values_stand_alone_or_beside_the_paid_ones(database_url: str, redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(POLICY)
    (tmp_path / "logs").mkdir()
    env = {"WAYBILL_POLICY_FILE": str(tmp_path / "policy.toml"), "WAYBILL_LOCAL_CONTEXT_TOKENS": "1024"}
    with (
        running() as sandbox,
        running_fleet(database_url, redis_url, sandbox.url, tmp_path / "logs", local=True, env=env),
        Client(database_url, redis_url) as client,
        LedgerRows(database_url) as ledger,
    ):
        asked = {"intent": "extraction", "prompt": RECEIPT, "json_schema": SCHEMA}
        alone = client.result(client.submit(Job(**asked, local_only=True)), timeout_s=120)
        beside = client.result(client.submit(Job(**asked)), timeout_s=120)

        assert alone.model == SMALL
        assert isinstance(alone.data, dict)
        assert alone.data["shop"] in " ".join(RECEIPT.split())
        assert alone.data["total"] in (3.5, 9.5)
        assert {line["job"] for line in sandbox.log() if line["status"] == 200} == {beside.job_id}
        assert beside.model == HAIKU
        [(detail, reason)] = ledger.all(
            "select detail -> 'local', reason from decisions where job_id = %s and outcome = 'escalate'", beside.job_id
        )
        assert "in shadow (no labels yet)" in reason
        # The same model said the same of the same text; what it said is kept as hashes alone.
        assert detail["values"]["total"] == fingerprint(f"n:{alone.data['total']:.6g}")
        end = time.monotonic() + 90
        while not (graded := ledger.all("select model, score, detail from grades where source = 'audit'")):
            assert time.monotonic() < end
            time.sleep(0.5)
    [(model, score, record)] = graded
    assert model == SMALL
    assert record["score"] == detail["score"] < 0
    assert record["right"] == (score == 1.0)
