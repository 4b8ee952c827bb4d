"""What every client program shares: run each operation, say on one JSON line what became of it. Runs in the client's venv."""

from __future__ import annotations

import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

BASE = os.environ["WAYBILL_TEST_BASE"]
"""The gateway, without /v1."""
V1 = f"{BASE}/v1"
CLAUDE = os.environ["WAYBILL_TEST_CLAUDE"]
"""The model that is asked for in Anthropic's dialect; crossed runs have a GPT here."""
GPT = os.environ["WAYBILL_TEST_GPT"]
"""The model that is asked for in OpenAI's dialects; crossed runs have a Claude here."""
KEY = "any"
PROMPT = "Name: Ada Lovelace\nCity: London"

os.environ.setdefault("OPENAI_AGENTS_DISABLE_TRACING", "1")
os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")


def run(operations: dict[str, Callable[[], Any]]) -> None:
    """Run them all; an operation passes when it returns something true. Exits with 0: the lines tell."""
    for name, operation in operations.items():
        try:
            value = operation()
            if inspect.iscoroutine(value):
                import asyncio

                value = asyncio.run(value)
            line = {"op": name, "ok": bool(value), "note": "" if value else "empty"}
        except BaseException as exc:  # noqa: BLE001 - whatever a client does is what we want to know
            if os.environ.get("WAYBILL_TEST_TRACE"):
                traceback.print_exc()
            line = {"op": name, "ok": False, "note": f"{type(exc).__name__}: {exc}"[:300]}
        print(json.dumps(line), flush=True)
    sys.stdout.flush()
