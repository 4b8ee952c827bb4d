"""What the gateway adds to a call, beside the same SDK calling the provider directly, in one run.

One request at a time: the openai SDK calls a sandbox (50 ms an answer) directly and through the gateway, in turns; whole
and to the first token. Many streams at once: a provider sends 50 chunks a stream at an exact pace with the time in each;
the delay of a chunk is what the client's clock says minus that. Everything shares this machine's cores, the provider and
the client included: compare the two columns, not the milliseconds.

What a pause costs is measured beside it: on some virtual machines a process that has waited 50 ms runs ten and more times
slower at first, because its pages' translations were dropped meanwhile, and one request at a time is nothing but such
pauses (docs/decisions/0157-huge-pages.md). `pause_ratio` says by how much;
where it is in the tens the milliseconds are the machine's, and the figures side by side say more of the code.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any

import aiohttp
import openai

from bench._pacer import CHUNKS
from bench.throughput import ROOMY, cpu_s
from sandbox.testing import spawned
from tests.fleet import ROOT, running_fleet
from waybill import embedded
from waybill.cli.db import run_upgrade
from waybill.cli.up import free_port

MODEL = "gpt-6-luna"
CALLERS = 4
OURS = ("gateway", "dispatcher", "openai", "control")


def pause_ratio() -> float:
    """How much longer the same piece of work takes after a pause of 50 ms than without one (medians of 40)."""
    text = json.dumps({
        "id": "x", "object": "chat.completion", "created": 1, "model": MODEL,
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello."}}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    })  # fmt: skip

    def seconds(pause_s: float) -> float:
        time.sleep(pause_s)
        start = time.perf_counter()
        openai.types.chat.ChatCompletion.model_validate_json(text).model_dump_json()
        json.dumps(json.loads(text))
        return time.perf_counter() - start

    seconds(0)
    hot, cold = ([seconds(pause_s) for _ in range(40)] for pause_s in (0.0, 0.05))
    return percentile(cold, 50) / percentile(hot, 50)


def percentile(values: list[float], share: int) -> float:
    """The share-th percentile, in milliseconds."""
    return quantiles(values, n=100, method="inclusive")[share - 1] * 1000 if len(values) > 1 else values[0] * 1000


def whole_s(client: openai.OpenAI) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Say hello."}])
    return time.perf_counter() - start


def first_token_s(client: openai.OpenAI) -> float:
    """Seconds to the first piece of the answer; the rest is read too."""
    start, first = time.perf_counter(), 0.0
    stream = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Say hello."}], stream=True
    )
    for chunk in stream:
        if not first and chunk.choices and chunk.choices[0].delta.content:
            first = time.perf_counter() - start
    return first


def one_at_a_time(direct: openai.OpenAI, through: openai.OpenAI, pids: list[int], calls: int) -> dict[str, float]:
    """Both in turns, so that what else the machine does hits both."""
    for _ in range(10):
        for client in (direct, through):
            whole_s(client)
            first_token_s(client)
    times: dict[str, list[float]] = {"direct": [], "through": [], "direct_first": [], "through_first": []}
    before = sum(map(cpu_s, pids))
    for _ in range(calls):
        times["direct"].append(whole_s(direct))
        times["through"].append(whole_s(through))
        times["direct_first"].append(first_token_s(direct))
        times["through_first"].append(first_token_s(through))
    cpu_ms = (sum(map(cpu_s, pids)) - before) / (2 * calls) * 1000
    found = {f"{name}_p{share}_ms": percentile(values, share) for name, values in times.items() for share in (50, 99)}
    return {
        "added_p50_ms": found["through_p50_ms"] - found["direct_p50_ms"],
        "added_p99_ms": found["through_p99_ms"] - found["direct_p99_ms"],
        "added_ttft_p50_ms": found["through_first_p50_ms"] - found["direct_first_p50_ms"],
        "added_ttft_p99_ms": found["through_first_p99_ms"] - found["direct_first_p99_ms"],
        "cpu_ms_per_call": cpu_ms,
        **found,
    }


def side_by_side(direct_url: str, through_url: str, pids: list[int], calls: int) -> dict[str, float]:
    """`CALLERS` at once, a client each: processes hardly pause, so this says what the code costs on any machine."""

    def measure(url: str, key: str) -> list[float]:
        def one(_: int) -> list[float]:
            with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client:
                return [whole_s(client) for _ in range(calls + 5)][5:]

        with ThreadPoolExecutor(CALLERS) as pool:
            return [seconds for each in pool.map(one, range(CALLERS)) for seconds in each]

    direct = measure(direct_url, "sandbox-direct")
    before = sum(map(cpu_s, pids))
    through = measure(through_url, "any")
    cpu_ms = (sum(map(cpu_s, pids)) - before) / (CALLERS * (calls + 5)) * 1000
    return {
        "callers": CALLERS,
        "added_p50_ms_side_by_side": percentile(through, 50) - percentile(direct, 50),
        "cpu_ms_per_call_side_by_side": cpu_ms,
    }


async def read_stream(session: aiohttp.ClientSession, url: str, delays: list[float]) -> int:
    """Read one stream; how many chunks came, in order and each once."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "go"}], "stream": True}
    seen, is_done = 0, False
    async with session.post(url, json=body, headers={"authorization": "Bearer any"}) as answer:
        async for line in answer.content:
            if not line.startswith(b"data: "):
                continue
            now = time.time()
            if line.startswith(b"data: [DONE]"):
                is_done = True
                continue
            choices = json.loads(line[6:]).get("choices") or []
            for part in (choices[0]["delta"].get("content") or "").split(" ")[:-1] if choices else []:
                if "." in part:
                    delays.append(now - float(part))
                elif int(part) == seen:
                    seen += 1
    return seen if is_done else -1


async def many_streams(url: str, streams: int) -> dict[str, Any]:
    """All at once."""
    delays: list[float] = []
    timeout = aiohttp.ClientTimeout(total=300)
    start = time.perf_counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        counts = await asyncio.gather(*(read_stream(session, url, delays) for _ in range(streams)))
    return {
        "wall_s": time.perf_counter() - start,
        "chunk_delay_p50_ms": percentile(delays, 50),
        "chunk_delay_p99_ms": percentile(delays, 99),
        "chunks_lost": streams * CHUNKS - sum(max(0, count) for count in counts),
        "not_ended": sum(count < 0 for count in counts),
    }


@contextmanager
def pacing(pause_s: float, *more: int) -> Iterator[str]:
    """The pacing provider as a process of its own."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "bench._pacer", str(port), str(pause_s), *map(str, more)], cwd=ROOT
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def main(argv: list[str]) -> None:
    """`./run bench latency [--json]`."""
    options = argparse.ArgumentParser(prog="./run bench latency")
    options.add_argument("--json", action="store_true")
    options.add_argument("--calls", type=int, default=100)
    options.add_argument("--streams", type=int, default=200)
    options.add_argument("--pause-ms", type=float, default=100.0, help="between the chunks of a stream")
    given = options.parse_args(argv)
    found: dict[str, Any] = {
        "calls": given.calls,
        "streams": given.streams,
        "pause_ms": given.pause_ms,
        "pause_ratio": pause_ratio(),
    }
    with tempfile.TemporaryDirectory() as folder, embedded.services(Path(folder) / "services") as services:

        def logs(name: str) -> Path:
            made = Path(folder) / name
            made.mkdir()
            return made

        redis_url = str(services.redis_url)
        database_url = embedded.create_database(str(services.database_url), "latency")
        run_upgrade(database_url)
        with (
            spawned("--latency", "fixed:50ms", "--limit", ROOMY) as box,
            running_fleet(database_url, redis_url, box.url, logs("calls"), gateway=True) as fleet,
            openai.OpenAI(base_url=box.openai_url, api_key="sandbox-direct", max_retries=0) as direct,
            openai.OpenAI(base_url=f"{fleet.gateway_url}/v1", api_key="any", max_retries=0) as through,
        ):
            pids = [fleet.pid(name) for name in OURS]
            found |= one_at_a_time(direct, through, pids, given.calls)
            found |= side_by_side(box.openai_url, f"{fleet.gateway_url}/v1", pids, given.calls)
        with (
            pacing(given.pause_ms / 1000) as url,
            running_fleet(database_url, redis_url, url, logs("streams"), gateway=True) as fleet,
        ):
            wait_for(url)
            asyncio.run(many_streams(f"{fleet.gateway_url}/v1/chat/completions", 5))
            beside = asyncio.run(many_streams(f"{url}/v1/chat/completions", given.streams))
            found |= {f"direct_{name}": value for name, value in beside.items()}
            found |= asyncio.run(many_streams(f"{fleet.gateway_url}/v1/chat/completions", given.streams))
    rounded = {name: round(value, 2) if isinstance(value, float) else value for name, value in found.items()}
    if given.json:
        print(json.dumps(rounded, indent=2))
        return
    for name, value in rounded.items():
        print(f"{name:28} {value}")


def wait_for(url: str) -> None:
    """Until somebody answers there."""
    port = int(url.rsplit(":", 1)[1])
    end = time.monotonic() + 20
    while time.monotonic() < end:
        import socket

        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"{url} does not answer")
