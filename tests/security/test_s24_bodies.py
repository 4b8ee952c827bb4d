"""S24: bodies that are too large, too deep, too many or compressed are refused before they are parsed in full."""

from __future__ import annotations

import gzip
import json
import resource
import time

import pytest

from producers.gateway import jobs
from producers.gateway.body import MAX_BYTES, MAX_DEPTH, is_deep
from tests.security.conftest import Api


def rss_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_s24_a_body_over_the_limit_is_413_and_is_not_kept(api: Api) -> None:
    key, chunk = api.key(), b" " * 65_536

    def endless():  # type: ignore[no-untyped-def]
        for _ in range(2 * MAX_BYTES // len(chunk)):
            yield chunk

    said = api.post("/v1/jobs", key, content=b"{}", headers={"content-length": str(MAX_BYTES + 1)})
    sent = api.post("/v1/jobs", key, content=endless())

    assert (said.status_code, sent.status_code) == (413, 413)


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_s24_deep_json_is_refused_without_recursion(api: Api, opening: bytes) -> None:
    key, before = api.key(), rss_kb()

    answer = api.post("/v1/jobs", key, content=opening * 100_000)

    assert (answer.status_code, "deeper than" in answer.text) == (400, True)
    assert rss_kb() - before < 50_000


def test_s24_brackets_in_strings_are_not_depth() -> None:
    text = json.dumps({"a": "[" * 10_000 + '"' + "{" * 10_000}).encode()
    began = time.monotonic()

    assert not is_deep(text)
    assert not is_deep(b"[" * MAX_DEPTH)
    assert is_deep(b"[" * (MAX_DEPTH + 1))
    assert time.monotonic() - began < 5


def test_s24_a_compressed_body_is_refused_unread(api: Api) -> None:
    bomb = gzip.compress(b"0" * 50_000_000)
    before = rss_kb()

    answer = api.post("/v1/jobs", api.key(), content=bomb, headers={"content-encoding": "gzip"})

    assert answer.status_code == 400
    assert rss_kb() - before < 20_000


def test_s24_a_run_ends_at_its_most_lines(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MOST_ROWS", 3)
    line = json.dumps({"intent": "extraction", "prompt": "x"}) + "\n"

    answer = api.post("/v1/runs", api.key(), content=line * 5)

    assert answer.status_code == 413
    assert api.sql("select count(*) as n from jobs") == [{"n": 3}]


def test_s24_a_line_without_end_is_refused(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MOST_LINE_BYTES", 100_000)

    assert api.post("/v1/runs", api.key(), content=b"x" * 300_000).status_code == 413


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b'{"a": NaN}', b"\xff\xfe", b'{"intent": "extraction", "prompt": "x"']
)
def test_s24_what_is_no_object_is_400(api: Api, body: bytes) -> None:
    assert api.post("/v1/jobs", api.key(), content=body).status_code == 400
