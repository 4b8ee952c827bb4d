"""Standard Webhooks: signs what Waybill sends, and checks what a receiver got. The receiver's side needs nothing else of ours.

webhook-id: msg_...            the same for every try: a receiver that has seen it is done
webhook-timestamp: 1764090000  of this try
webhook-signature: v1,BASE64   HMAC-SHA-256 over "id.timestamp.body"
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Mapping
from typing import Any, Final

from waybill.errors import WaybillError

TOLERANCE_S: Final = 300
_PREFIX: Final = "whsec_"


class WebhookRefused(WaybillError):
    """What came is not from Waybill, was changed on its way, or is too old."""


def make_secret() -> str:
    """A new secret of 256 random bits, in the form that Standard Webhooks libraries take."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`.

    Raises:
        WebhookRefused: The secret is none.
    """
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise WebhookRefused("the secret is not of the form whsec_BASE64") from None
    mac = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(mac).decode()}"


def verify(secret: str, headers: Mapping[str, str], body: bytes, *, now: float | None = None) -> dict[str, Any]:
    """What a receiver may believe: the event.

    Remember `webhook-id` for five minutes and drop what comes twice; older repetitions are refused here.

    Args:
        secret: Of the webhook, `whsec_...`.
        headers: Of the request, in any case.
        body: Exactly the bytes that came.
        now: Seconds since the epoch; None = the clock.

    Raises:
        WebhookRefused: A header is missing, the signature is wrong, or the timestamp is 5 minutes off.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    try:
        message_id, stamp, signatures = (lower[f"webhook-{name}"] for name in ("id", "timestamp", "signature"))
    except KeyError as exc:
        raise WebhookRefused(f"header {exc.args[0]} is missing") from None
    if not stamp.isascii() or not stamp.isdigit():
        raise WebhookRefused("webhook-timestamp is not a number")
    if abs((time.time() if now is None else now) - int(stamp)) > TOLERANCE_S:
        raise WebhookRefused("webhook-timestamp is more than 5 minutes off")
    expected = sign(secret, message_id, int(stamp), body)
    # Several may stand there while a secret is changed.
    if not any(hmac.compare_digest(expected.encode(), given.encode()) for given in signatures.split()):
        raise WebhookRefused("the signature is wrong")
    event: dict[str, Any] = json.loads(body)
    return event
