"""Sends what webhooks are due: signed, to the address that was checked, without redirects, with bounds on time and size.

A delivery that is not taken is tried again after `WAITS_S`, then given up; 410 switches the webhook off. Any number of
gateways may run this: each delivery is taken by one of them at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from producers.gateway.address import AddressRefused, IpNetwork, Resolver, Target, check, resolve
from waybill.errors import LedgerUnavailable
from waybill.ledger import webhooks
from waybill.webhooks import sign

if TYPE_CHECKING:
    from waybill.ledger.engine import Ledger, Row

log = logging.getLogger("waybill.gateway")

DEADLINE_S: Final = 10.0
"""For one try: connection, TLS, sending and reading together."""
MOST_READ: Final = 64 * 1024
WAITS_S: Final = (5, 30, 120, 600, 3600, 3 * 3600, 6 * 3600, 12 * 3600)
"""Before the second try, the third ...: nearly a day in all."""
LOOK_EVERY_S: Final = 2.0
AT_ONCE: Final = 20
_LEASE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Sent:
    """How a try ended: an HTTP status, or an error in words."""

    status: int | None
    error: str | None = None

    @property
    def is_taken(self) -> bool:
        """Whether the receiver has it."""
        return self.status is not None and 200 <= self.status < 300


class Postman:
    """One per gateway process."""

    def __init__(self, ledger: Ledger, *, private: Sequence[IpNetwork] = (), resolver: Resolver = resolve) -> None:
        self._ledger, self._private, self._resolver = ledger, private, resolver
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin. Call in the loop."""
        self._task = asyncio.create_task(self._run(), name="postman")

    async def close(self) -> None:
        """Stop; what is under way is due again later."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            try:
                await self._ledger.fetch(webhooks.FIND_NEWS)
                while await self.round():
                    pass
            except LedgerUnavailable as exc:
                log.warning("service.away service=ledger error=%s", exc)
            except Exception:
                log.exception("webhooks cannot be sent")  # a bug: said each time, and no reason to stop for good
            await asyncio.sleep(LOOK_EVERY_S)

    async def round(self) -> int:
        """Send what is due now, at most `AT_ONCE`. Returns how many there were."""
        due = await self._ledger.fetch(webhooks.TAKE_DUE, {"limit": AT_ONCE, "lease_s": _LEASE_S})
        await asyncio.gather(*(self._deliver(row) for row in due))
        return len(due)

    async def _deliver(self, row: Row) -> None:
        body = row["payload"].encode()
        timestamp = int(time.time())
        headers = {
            "webhook-id": row["id"],
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(row["secret"], row["id"], timestamp, body),
        }
        sent = await self.send(row["url"], headers, body)
        state, wait_s = "waiting", 0.0
        if sent.is_taken:
            state = "delivered"
        elif sent.status == 410:
            state = "failed"
            await self._ledger.fetch(webhooks.DISABLE, {"id": row["webhook_id"], "why": "the receiver said 410 Gone"})
        elif row["tries"] > len(WAITS_S):
            state = "failed"
        else:
            wait_s = WAITS_S[row["tries"] - 1]
        await self._ledger.fetch_patiently(
            webhooks.DONE,
            {"id": row["id"], "state": state, "status": sent.status, "error": sent.error, "wait_s": float(wait_s)},
        )

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Sent:
        """One try. Every way it can go wrong is a value."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                target = await check(url, private=self._private, resolver=self._resolver)
                return await _post(target, headers, body)
        except AddressRefused as exc:
            return Sent(None, str(exc))
        except TimeoutError:
            return Sent(None, f"no answer within {DEADLINE_S:.0f} s")
        except (OSError, ssl.SSLError, asyncio.IncompleteReadError, ValueError) as exc:
            return Sent(None, f"{type(exc).__name__}: {exc}"[:300])


async def _post(target: Target, headers: Mapping[str, str], body: bytes) -> Sent:
    """POST to the address of the target itself; the name only goes into TLS and `Host`. Redirects are not followed."""
    context = ssl.create_default_context() if target.is_tls else None
    reader, writer = await asyncio.open_connection(
        target.address, target.port, ssl=context, server_hostname=target.host if context else None, limit=MOST_READ
    )
    try:
        host = f"[{target.host}]" if ":" in target.host else target.host
        default = 443 if target.is_tls else 80
        lines = [
            f"POST {target.path} HTTP/1.1",
            f"host: {host}" if target.port == default else f"host: {host}:{target.port}",
            "user-agent: waybill-webhooks",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        writer.write("\r\n".join([*lines, "", ""]).encode("ascii") + body)
        await writer.drain()
        status_line = await reader.readuntil(b"\n")
        version, _, rest = status_line.partition(b" ")
        if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit():
            return Sent(None, "the receiver does not speak HTTP/1.1")
        status = int(rest[:3])
        if 300 <= status < 400:
            return Sent(status, "redirects are not followed; register the final URL")
        return Sent(status, None if 200 <= status < 300 else f"the receiver answered {status}")
    except (asyncio.LimitOverrunError, ValueError):
        return Sent(None, f"the receiver's first line has more than {MOST_READ // 1024} kB")
    finally:
        # What else it has to say is not read: the status is all that counts.
        writer.transport.abort()
