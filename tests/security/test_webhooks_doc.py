"""The receiver of docs/webhooks.md, run as it stands there."""

from __future__ import annotations

import ipaddress
import re
import threading
import time
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from producers.gateway.postman import Postman, Sent
from waybill.webhooks import make_secret, sign

PAGE = Path(__file__).parents[2] / "docs" / "webhooks.md"


def sample() -> dict[str, Any]:
    """What the page's Python block defines."""
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, Any] = {"__name__": "receiver"}
    exec(compile(code, str(PAGE), "exec"), names)  # noqa: S102  # our own page
    return names


async def test_the_receiver_takes_what_is_signed_once_and_refuses_the_rest(capfd: pytest.CaptureFixture[str]) -> None:
    names, secret = sample(), make_secret()
    names["SECRET"] = secret
    server = ThreadingHTTPServer(("127.0.0.1", 0), names["Receiver"])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    sender = Postman(None, private=[ipaddress.ip_network("127.0.0.0/8")])  # type: ignore[arg-type]  # no ledger needed
    body = b'{"type": "job.finished", "timestamp": null, "data": {"id": "j1"}}'

    async def send(message_id: str, at: int, key: str = secret, sent: bytes = body) -> Sent:
        headers = {
            "webhook-id": message_id,
            "webhook-timestamp": str(at),
            "webhook-signature": sign(key, message_id, at, body),
        }
        return await sender.send(url, headers, sent)

    now = int(time.time())
    try:
        statuses = [
            (await send("msg_1", now)).status,
            (await send("msg_1", now)).status,
            (await send("msg_2", now - 400)).status,
            (await send("msg_3", now, make_secret())).status,
            (await send("msg_4", now, sent=body + b" ")).status,
        ]
    finally:
        server.shutdown()
        server.server_close()

    assert statuses == [204, 204, 400, 400, 400]
    assert capfd.readouterr().out == "job.finished {'id': 'j1'}\n"
