"""What the gateway refuses before it serves, and how it answers what it does not know. No fleet is needed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from policies.policyfile import parse
from producers.gateway.app import make_app
from producers.gateway.serve import make_gateway
from tests.fleet import clean_environment
from waybill.cli.up import free_port
from waybill.errors import ConfigError
from waybill.settings import Settings

POLICY = parse((Path(__file__).parents[2] / "policies" / "default.toml").read_text(encoding="utf-8"), "default.toml")
NOWHERE = {
    "WAYBILL_DATABASE_URL": "postgresql+psycopg://nobody:x@127.0.0.1:9/none",
    "WAYBILL_REDIS_URL": "redis://127.0.0.1:9/0",
}


@pytest.fixture
def http() -> Iterator[TestClient]:
    gateway = make_gateway(Settings.from_env(NOWHERE), POLICY, frozenset({"local"}))
    with TestClient(make_app(gateway), raise_server_exceptions=False) as client:
        yield client


def test_ends_well_when_told_to_stop() -> None:
    env = {**clean_environment(), **NOWHERE, "WAYBILL_GATEWAY_PORT": str(free_port())}
    argv = [sys.executable, "-m", "waybill", "gateway"]
    with subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        assert any("Application startup complete" in line for line in process.stderr)
        process.terminate()
        rest = process.stderr.read()

    assert process.returncode == 0, rest[-500:]


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.0.0.7", "gateway.internal"])
def test_refuses_to_start_open_to_others(address: str) -> None:
    settings = Settings.from_env({**NOWHERE, "WAYBILL_GATEWAY_ADDRESS": address})

    with pytest.raises(ConfigError, match="WAYBILL_GATEWAY_ADDRESS"):
        make_gateway(settings, POLICY, frozenset())


def test_development_mode_refuses_pages_of_other_sites(http: TestClient) -> None:
    rebound = http.get("/v1/models", headers={"host": "evil.example"})
    foreign = http.get("/v1/models", headers={"origin": "https://evil.example"})

    assert (rebound.status_code, foreign.status_code) == (403, 403)
    assert rebound.json()["error"]["code"] == "permission_denied"


@pytest.mark.parametrize("path", ["/models", "/v1/models", "/v1/v1/models"])
def test_serves_every_spelling_of_a_path(http: TestClient, path: str) -> None:
    answer = http.get(path, headers={"sec-fetch-mode": "cors"})

    ids = [model["id"] for model in answer.json()["data"]]
    assert {"auto", "waybill/extraction", "claude-haiku-5-5", "gpt-6-luna"} <= set(ids)
    assert "smollm2-135m-instruct" not in ids  # its provider is off here


def test_lists_models_page_by_page_for_anthropic(http: TestClient) -> None:
    first = http.get("/v1/models?limit=2", headers={"anthropic-version": "2026-10-21"}).json()
    second = http.get(
        f"/v1/models?limit=1000&after_id={first['last_id']}", headers={"anthropic-version": "2026-10-21"}
    ).json()

    assert first["has_more"]
    assert not second["has_more"]
    everything = http.get("/v1/models").json()["data"]
    assert [m["id"] for m in first["data"] + second["data"]] == [m["id"] for m in everything]


def test_unknown_model_and_path_are_404_in_the_dialects_own_shape(http: TestClient) -> None:
    openai = http.get("/v1/models/gpt-2")
    anthropic = http.get("/v1/models/gpt-2", headers={"anthropic-version": "2023-06-01"})
    nowhere = http.get("/v1/no/such/path")

    assert (openai.status_code, openai.json()["error"]["code"]) == (404, "model_not_found")
    assert anthropic.json()["error"]["type"] == "not_found_error"
    assert anthropic.json()["request_id"] == anthropic.headers["request-id"]
    assert nowhere.status_code == 404


def test_serves_its_openapi_document_and_a_page_for_people(http: TestClient) -> None:
    document = http.get("/openapi.json").json()
    page = http.get("/docs")

    assert document["openapi"].startswith("3.")
    assert {"/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/models/{model}"} <= document["paths"].keys()
    for operations in document["paths"].values():
        for operation in operations.values():
            assert operation["summary"]
            # Each status by its name: `default` would make every answer a documented one.
            assert "default" not in operation["responses"]
            assert any(status.startswith("2") for status in operation["responses"])
    assert {"400", "401", "403", "404", "409", "413", "429"} <= document["paths"]["/v1/chat/completions"]["post"][
        "responses"
    ].keys()
    assert not [path for path in document["paths"] if path.startswith("/dashboard")]
    assert "/v1/messages" in page.text
    assert "http://127.0.0.1" in page.text
    assert "<script" not in page.text
