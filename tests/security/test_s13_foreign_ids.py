"""S13: what belongs to another tenant is not there: 404 from every endpoint that takes an id, and absent from every list."""

from __future__ import annotations

import json
import re

from starlette.routing import Route

from producers.gateway import app as gateway_app
from tests.security.conftest import Api, bearer

# Made by tenant A; asked for by tenant B. Endpoints of admins work on all tenants on purpose.
_NOT_TENANTS = re.compile(r"^/v1/admin/|^/v1/models")


def made_by(api: Api, key: str) -> dict[str, str]:
    """Ids by the prefix of the routes that take them."""
    job = api.post("/v1/jobs", key, json={"intent": "extraction", "prompt": "x"}).json()["id"]
    run = api.post("/v1/runs", key, content=json.dumps({"intent": "extraction", "prompt": "y"})).json()["id"]
    api.gateway.settings.__dict__["webhook_networks"] = "127.0.0.0/8"
    hook = api.post("/v1/webhooks", key, json={"url": "http://127.0.0.1:9/", "events": ["job.finished"]}).json()["id"]
    delivery = api.post(f"/v1/webhooks/{hook}/test", key).json()["id"]
    row = {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": {"model": "gpt-6-luna", "input": "x"}}
    upload = {"files": {"file": ("x", json.dumps(row).encode())}, "data": {"purpose": "batch"}}
    file = api.post("/v1/files", key, **upload).json()["id"]
    asked = {"input_file_id": file, "endpoint": "/v1/responses", "completion_window": "24h"}
    batch = api.post("/v1/batches", key, json=asked).json()["id"]
    params = {"model": "claude-haiku-5-5", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
    theirs = {"requests": [{"custom_id": "a", "params": params}]}
    message_batch = api.post("/v1/messages/batches", key, json=theirs).json()["id"]
    return {
        "/v1/files/": file,
        "/v1/batches/": batch,
        "/v1/messages/batches/": message_batch,
        "/v1/jobs/": job,
        "/dashboard/jobs/": job,
        "/v1/runs/": run,
        "/v1/webhooks/deliveries/": delivery,
        "/v1/webhooks/": hook,
    }


def routes_with_ids() -> list[tuple[str, str]]:
    """Method and path of every route that has an id in it."""
    return [
        (method, route.path)
        for module in gateway_app.ROUTE_MODULES
        for route in module.routes
        if isinstance(route, Route) and "{" in route.path and not _NOT_TENANTS.match(route.path)
        for method in sorted((route.methods or set()) - {"HEAD"})
    ]


def test_s13_another_tenants_things_are_not_there(api: Api) -> None:
    owner, other = api.key("acme", "call", "jobs"), api.key("globex", "call", "jobs")
    ids = made_by(api, owner)
    asked = 0
    for method, path in routes_with_ids():
        prefix = max((prefix for prefix in ids if path.startswith(prefix)), key=len, default=None)
        assert prefix is not None, f"{path}: say in this test what another tenant could ask for"
        url = re.sub(r"\{[^}]*\}", ids[prefix], path)
        body = b'{"score": 1}' if method == "POST" else None

        answer = api.http.request(method, url, headers=bearer(other), content=body)

        assert answer.status_code == 404, f"{method} {path}: {answer.status_code} {answer.text[:200]}"
        asked += 1
    assert asked >= 23
    for path in ("/v1/jobs", "/v1/runs", "/v1/webhooks", "/v1/files", "/v1/batches", "/v1/messages/batches"):
        assert api.get(path, other).json()["data"] == []
        assert api.get(path, owner).json()["data"] != []
    stolen = {"input_file_id": ids["/v1/files/"], "endpoint": "/v1/responses", "completion_window": "24h"}
    assert api.post("/v1/batches", other, json=stolen).status_code == 404
    run_filter = api.get(f"/v1/jobs?run={ids['/v1/runs/']}", other).json()
    assert run_filter["data"] == []
    assert api.sql("select state from jobs where state <> 'queued'") == []
