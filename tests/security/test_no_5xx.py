"""No request is odd enough for a 5xx: every route of ours, with ids, queries and bodies that nobody means."""

from __future__ import annotations

import itertools
import json
import re

from starlette.routing import Route

from producers.gateway import admin, batches, files, jobs, messagebatches, webhooks
from tests.security.conftest import Api, bearer

IDS = ("x", "%00", "%FF", "..%2F..", "a" * 2000, "0199aaaa-0000-7000-8000-000000000000", "%F0%9F%98%80", "'")
QUERIES = (
    "",
    "limit=1&after=%00",
    "limit=-1",
    "after=%ED%A0%80",
    "wait=nan",
    "wait=1e999",
    "name=%00",
    "scope=%00&subject=%00",
)
VALUES = (None, True, -1, 1e308, 10**30, "", "\u0000", "a" * 5000, "\u202e", [], [[]], {}, {"a": {"b": []}}, ["x", 1])
RAW = (
    b"",
    b"null",
    b"[]",
    b'"x"',
    b"{",
    b"\xff",
    b"0" * 5000,
    b'{"a":1,"a":2}',
    json.dumps({"\ud800": "\ud800"}).encode(),
)
NAMES = (
    "tenant", "name", "scopes", "days", "weight", "suspended", "scope", "subject", "cap_usd", "period", "at_cap",
    "alert_shares", "intent", "prompt", "messages", "json_schema", "labels", "model", "metadata", "idempotency_key",
    "deadline_s", "max_output_tokens", "priority", "score", "note", "url", "events", "input_file_id", "endpoint",
    "completion_window", "requests",
)  # fmt: skip
GOOD = {
    "/v1/jobs": {"intent": "extraction", "prompt": "x"},
    "/v1/admin/keys": {"tenant": "acme"},
    "/v1/admin/budgets": {"scope": "tenant", "subject": "acme", "cap_usd": 1},
    "/v1/admin/tenants": {"name": "new"},
    "/v1/webhooks": {"url": "https://192.0.2.1/", "events": ["job.finished"]},
    "/v1/batches": {"input_file_id": "file-x", "endpoint": "/v1/responses", "completion_window": "24h"},
    "/v1/messages/batches": {"requests": [{"custom_id": "a", "params": {}}]},
}


def test_no_odd_request_is_a_server_error(api: Api) -> None:
    key, bad, count = api.key("acme", "call", "jobs", "admin"), [], 0
    routes = [
        (method, route.path)
        for module in (admin, batches, files, jobs, messagebatches, webhooks)
        for route in module.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    ]

    def ask(method: str, url: str, body: bytes | None) -> None:
        nonlocal count
        count += 1
        answer = api.http.request(method, url, headers=bearer(key), content=body)
        if answer.status_code >= 500:
            bad.append((method, url[:80], (body or b"")[:80], answer.status_code))

    for method, path in routes:
        urls = {re.sub(r"\{[^}]*\}", one, path) for one in IDS}
        for url in urls:
            ask(method, url, b"{}" if method in ("POST", "PATCH") else None)
        for query in QUERIES:
            ask(method, f"{re.sub(r'{[^}]*}', 'x', path)}?{query}", b"{}" if method in ("POST", "PATCH") else None)
        if method in ("POST", "PATCH"):
            for raw in RAW:
                ask(method, re.sub(r"\{[^}]*\}", "x", path), raw)
    for (path, good), name, value in itertools.product(GOOD.items(), NAMES, VALUES):
        if name in good or path == "/v1/jobs":
            ask("POST", path, json.dumps({**good, name: value}).encode())

    for path, field in (("/v1/chat/completions", "messages"), ("/v1/responses", "input"), ("/v1/messages", "messages")):
        for value in VALUES:
            ask("POST", path, json.dumps({"model": value, "max_tokens": 9, field: "x"}).encode())
        ask("POST", path, b'{"model": "\\ud800", "messages": [{"role": "user", "content": "\\ud800"}]}')
        ask("POST", path, b'{"\\ud800": 1}')

    assert count > 700
    assert bad == []
