"""A provider for bench/latency.py and memory.py: streams of chunks at an exact pace, each with the time it was sent."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import uvicorn

CHUNKS = 50
_USAGE = {"prompt_tokens": 10, "completion_tokens": CHUNKS, "total_tokens": 10 + CHUNKS}


def pacer(pause_s: float, chunks: int = CHUNKS, filling: int = 0) -> Any:
    """An ASGI application that answers every POST with so many chunks, `pause_s` apart, each with `filling` more bytes."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass

        async def say(event: Any) -> None:
            text = event if isinstance(event, str) else json.dumps(event)
            await send({"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True})

        base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-6-luna"}

        def chunk(delta: Any, finish: str | None = None) -> Any:
            return {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        start = time.monotonic()
        for number in range(chunks):
            await asyncio.sleep(max(0.0, start + (number + 1) * pause_s - time.monotonic()))
            await say(chunk({"content": f"{number} {time.time():.6f} {'x' * filling}"}))
        await say(chunk({}, "stop"))
        await say({**base, "choices": [], "usage": _USAGE})
        await say("[DONE]")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return app


if __name__ == "__main__":
    made = pacer(float(sys.argv[2]), *map(int, sys.argv[3:]))
    uvicorn.run(made, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", lifespan="off")
