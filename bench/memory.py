"""Whether the gateway's memory stays flat: over many requests of all kinds, and under many readers that hardly read.

First `--requests` calls, `--at-once` at a time, in all three dialects, whole and streamed, and a few that are refused; the
memory of gateway, dispatcher and worker is noted twenty times. Then `--slow-readers` streams at once whose readers take a few
kB a second, one in ten nothing at all, twice: what the second time adds is a leak, what the first adds is what it takes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import aiohttp

from bench.latency import MODEL, pacing, wait_for
from bench.throughput import ROOMY
from sandbox.testing import spawned
from tests.fleet import RunningFleet, running_fleet
from waybill import embedded
from waybill.cli.db import run_upgrade

WATCHED: Final = ("gateway", "dispatcher", "openai")
SAMPLES: Final = 20
SETTLED: Final = 0.2
"""Share of the requests after which a process has all its caches and pools: from there on memory has to be flat."""
SLOW_CHUNKS: Final = 200
SLOW_CHUNK_BYTES: Final = 500
READ_BYTES: Final = 4096
STUCK: Final = 10
"""One in so many readers never reads."""


def rss_mb(pid: int) -> float:
    """Resident memory of a process."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return round(int(line.split()[1]) / 1024, 1)


def request(number: int) -> tuple[str, dict[str, Any]]:
    """Path and body of a request; every prompt is another one, every fiftieth request is refused."""
    text = [{"role": "user", "content": f"Say hello to number {number}."}]
    stream = number % 2 == 0
    if number % 50 == 49:
        return "/v1/chat/completions", {"model": MODEL, "messages": text, "no_such_parameter": number}
    match number % 3:
        case 0:
            return "/v1/chat/completions", {"model": MODEL, "messages": text, "stream": stream}
        case 1:
            return "/v1/messages", {"model": MODEL, "messages": text, "stream": stream, "max_tokens": 100}
        case _:
            return "/v1/responses", {"model": MODEL, "input": text[0]["content"], "stream": stream}


async def many_requests(fleet: RunningFleet, requests: int, at_once: int) -> dict[str, Any]:
    """All of them; what came back and the memory on the way."""
    statuses: Counter[str] = Counter()
    samples: list[dict[str, Any]] = []
    numbers = iter(range(requests))
    start = time.monotonic()

    def sample(done: int) -> None:
        taken = {"requests": done, "s": round(time.monotonic() - start)}
        samples.append(taken | {name: rss_mb(fleet.pid(name)) for name in WATCHED})
        print(json.dumps(samples[-1]), file=sys.stderr, flush=True)

    async def work(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            path, body = request(number)
            try:
                async with session.post(f"{fleet.gateway_url}{path}", json=body, headers=_HEADERS) as answer:
                    await answer.read()
                    statuses[str(answer.status)] += 1
            except (aiohttp.ClientError, TimeoutError) as exc:
                statuses[type(exc).__name__] += 1
            if sum(statuses.values()) % step == 0:
                sample(sum(statuses.values()))

    step = max(1, requests // SAMPLES)
    sample(0)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:
        await asyncio.gather(*(work(session) for _ in range(at_once)))
    settled = [s for s in samples if s["requests"] >= requests * SETTLED]
    return {
        "requests": sum(statuses.values()),
        "statuses": dict(statuses),
        "wall_s": round(time.monotonic() - start),
        "rss_mb": samples,
        "gateway_settled_mb": settled[0]["gateway"],
        "gateway_last_mb": settled[-1]["gateway"],
        "gateway_kb_per_1000": round(1000 * slope([(s["requests"], s["gateway"] * 1024) for s in settled]), 1),
    }


_HEADERS: Final = {"authorization": "Bearer any"}


def slope(points: list[tuple[float, float]]) -> float:
    """Of the straight line through the points."""
    if len(points) < 2:
        return 0.0
    x, y = (sum(values) / len(points) for values in zip(*points, strict=True))
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


async def slow_reader(port: int, number: int, ended: Counter[str]) -> None:
    """Ask for a long stream and take a few kB a second, or nothing."""
    body = json.dumps(
        {"model": MODEL, "messages": [{"role": "user", "content": f"go {number} {time.time()}"}], "stream": True}
    ).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, READ_BYTES)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, ("127.0.0.1", port))
        await loop.sock_sendall(connection, f"{head}\r\nauthorization: Bearer any\r\n\r\n".encode() + body)
        if number % STUCK == 0:
            await asyncio.sleep(60)
            ended["left"] += 1
            return
        last = b""
        while not last.endswith(b"0\r\n\r\n"):
            found = await asyncio.wait_for(loop.sock_recv(connection, READ_BYTES), 240)
            if not found:
                break
            last = (last + found)[-200:]
            await asyncio.sleep(1)
        ended["read" if b"[DONE]" in last else "broken off"] += 1


async def slow_readers(fleet: RunningFleet, readers: int) -> dict[str, Any]:
    """All at once; the memory before, at its highest and a moment after."""
    pid, port, ended = fleet.pid("gateway"), int(fleet.gateway_url.rsplit(":", 1)[1]), Counter[str]()
    before = peak = rss_mb(pid)
    work = asyncio.gather(*(slow_reader(port, n, ended) for n in range(readers)), return_exceptions=True)
    while not work.done():
        peak = max(peak, rss_mb(pid))
        await asyncio.sleep(0.5)
    for failed in await work:
        if failed is not None:
            ended[type(failed).__name__] += 1
    await asyncio.sleep(10)
    found = {"before_mb": before, "peak_mb": peak, "after_mb": rss_mb(pid), "ended": dict(ended)}
    print(json.dumps(found), file=sys.stderr, flush=True)
    return found


def main(argv: list[str]) -> None:
    """`./run bench memory [--json]`; an hour or more with the default, so in the background."""
    options = argparse.ArgumentParser(prog="./run bench memory")
    options.add_argument("--json", action="store_true")
    options.add_argument("--requests", type=int, default=100_000)
    options.add_argument("--at-once", type=int, default=16)
    options.add_argument("--slow-readers", type=int, default=1000)
    options.add_argument("--nice", type=int, default=5, help="how far this and what it starts step back")
    given = options.parse_args(argv)
    os.nice(given.nice)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, embedded.services(Path(folder) / "services") as services:
        database_url = embedded.create_database(str(services.database_url), "memory")
        run_upgrade(database_url)
        redis_url = str(services.redis_url)

        def logs(name: str) -> Path:
            made = Path(folder) / name
            made.mkdir()
            return made

        with (
            spawned("--latency", "fixed:0ms", "--limit", ROOMY) as box,
            running_fleet(database_url, redis_url, box.url, logs("requests"), gateway=True) as fleet,
        ):
            found |= asyncio.run(many_requests(fleet, given.requests, given.at_once))
        with (
            pacing(0.005, SLOW_CHUNKS, SLOW_CHUNK_BYTES) as url,
            running_fleet(database_url, redis_url, url, logs("readers"), gateway=True) as fleet,
        ):
            wait_for(url)
            found["slow_readers"] = given.slow_readers
            found["slow_readers_rss_mb"] = [asyncio.run(slow_readers(fleet, given.slow_readers)) for _ in range(2)]
    if given.json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        print(f"{name:24} {value}")
