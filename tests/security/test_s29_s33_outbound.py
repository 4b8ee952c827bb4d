"""S29 to S33: where webhooks may go, what they carry, and what a receiver can do to us."""

from __future__ import annotations

import asyncio
import inspect
import ipaddress
import json
import socket
import time
from collections.abc import AsyncIterator, Sequence
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.gateway import postman
from producers.gateway.address import AddressRefused, check, is_public
from producers.gateway.postman import Postman
from tests.contract.budgeted import claimed, set_budget, settle
from tests.security.conftest import Api
from tests.security.receiver import Receiver, answering, listening, read_request
from waybill.ledger import webhooks
from waybill.ledger.engine import Ledger
from waybill.webhooks import TOLERANCE_S, WebhookRefused, make_secret, sign, verify

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
BAD = (
    "https://127.0.0.1/", "https://localhost/", "https://169.254.169.254/latest/meta-data/", "https://[::1]/",
    "https://[::ffff:127.0.0.1]/", "https://[::ffff:a9fe:a9fe]/", "https://[64:ff9b::7f00:1]/", "https://[2002:7f00:1::]/",
    "https://2130706433/", "https://0x7f000001/", "https://0177.0.0.1/", "https://127.1/", "https://0/", "https://0.0.0.0/",
    "https://10.0.0.8/", "https://192.168.1.1/", "https://172.16.0.1/", "https://100.64.0.1/", "https://[fd00::1]/",
    "https://[fe80::1%25eth0]/", "https://224.0.0.1/", "https://user@example.com/", "https://user:pw@example.com/",
    "https://example.com@127.0.0.1/", "ftp://example.com/", "file:///etc/passwd", "gopher://example.com/", "javascript:1",
    "http://example.com/", "//example.com/", "example.com", "", "https://", "https:///x", "https://exa mple.com/",
    "https://example.com/\r\nx-evil: 1", "https://example.com/#fragment", "https://ex\u00e4mple.com/", "https://a..b/",
    "https://example.com:99999/", "https://example.com\\@127.0.0.1/",
)  # fmt: skip


async def public(_: str, __: int) -> Sequence[str]:
    return ["93.184.216.34"]


@pytest.mark.parametrize("url", BAD)
async def test_s29_private_and_odd_addresses_are_refused(url: str) -> None:
    async def resolver(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"] if host == "localhost" else await public(host, port)

    with pytest.raises(AddressRefused):
        await check(url, resolver=resolver)


async def test_s29_a_public_host_is_fine() -> None:
    target = await check("https://hooks.example.com:8443/in?x=1", resolver=public)

    assert (target.address, target.host, target.port, target.path) == (
        "93.184.216.34", "hooks.example.com", 8443, "/in?x=1",
    )  # fmt: skip


@given(st.ip_addresses(v=4).filter(lambda a: not a.is_global))
def test_s29_no_wrapping_makes_a_private_address_public(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    wrapped = [
        address,
        ipaddress.IPv6Address((0xFFFF << 32) | number),
        ipaddress.IPv6Address(int(ipaddress.IPv6Address("64:ff9b::")) | number),
        ipaddress.IPv6Address((0x2002 << 112) | (number << 80)),
        ipaddress.IPv6Address(number),
    ]

    assert not any(is_public(one) for one in wrapped)


def test_s29_registration_and_every_try_use_the_same_guard(api: Api) -> None:
    key = api.key()

    answers = [api.post("/v1/webhooks", key, json={"url": url, "events": ["job.finished"]}) for url in BAD]

    assert {answer.status_code for answer in answers} == {400}
    assert api.sql("select count(*) as n from webhooks") == [{"n": 0}]
    assert "check(" in inspect.getsource(Postman.send)  # the only way out; see the next test


async def test_s29_what_was_registered_before_is_refused_when_it_is_sent() -> None:
    sent = await Postman(None).send("https://169.254.169.254/", {}, b"{}")  # type: ignore[arg-type]  # no ledger needed

    assert sent.status is None
    assert "private or special" in str(sent.error)


async def test_s30_the_connection_goes_to_the_address_that_was_checked() -> None:
    """A name that is public when it is checked and private a moment later: there is no later."""
    asked: list[str] = []
    received: list[tuple[dict[str, str], bytes]] = []

    async def flipping(host: str, _: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    async with listening(answering("204 No Content", received)) as url:
        port = url.rsplit(":", 1)[1]
        sender = Postman(None, private=LOOPBACK, resolver=flipping)  # type: ignore[arg-type]
        sent = await sender.send(f"http://flip.example:{port}", {}, b"{}")

    assert (sent.status, asked) == (204, ["flip.example"])
    assert received[0][0]["host"].startswith("flip.example:")


@pytest.mark.parametrize("second", ["127.0.0.1", "10.0.0.1", "::1"])
async def test_s30_one_private_address_among_several_is_enough_to_refuse(second: str) -> None:
    async def both(_: str, __: int) -> Sequence[str]:
        return ["93.184.216.34", second]

    with pytest.raises(AddressRefused):
        await check("https://mixed.example/", resolver=both)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postman, "DEADLINE_S", 0.5)


async def test_s31_redirects_are_not_followed(hasty: None) -> None:
    reached: list[tuple[dict[str, str], bytes]] = []
    async with (
        listening(answering("200 OK", reached)) as inner,
        listening(answering("302 Found", extra=f"location: {inner}\r\n")) as url,
    ):
        sent = await Postman(None, private=LOOPBACK).send(url, {}, b"{}")  # type: ignore[arg-type]

    assert (sent.status, sent.is_taken, reached) == (302, False, [])


async def test_s31_an_endless_answer_a_hang_and_a_drip_end_at_the_bounds(hasty: None) -> None:
    async def endless_line(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        while True:
            writer.write(b"HTTP/1.1 200 " + b"x" * 65_536)
            await writer.drain()

    async def endless_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x" * 65_536)
            await writer.drain()

    async def hang(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read(-1)

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        while True:
            writer.write(b"H")
            await writer.drain()
            await asyncio.sleep(0.05)

    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"SSH-2.0-OpenSSH\r\n")
        await writer.drain()

    found = {}
    for name, answer in {
        "line": endless_line, "body": endless_body, "hang": hang, "drip": drip, "nonsense": nonsense,
    }.items():  # fmt: skip
        async with listening(answer) as url:
            found[name] = await Postman(None, private=LOOPBACK).send(url, {}, b"{}")  # type: ignore[arg-type]

    assert found["body"].is_taken
    assert [found[name].status for name in ("line", "hang", "drip", "nonsense")] == [None] * 4
    assert "64 kB" in str(found["line"].error)
    assert "no answer within" in str(found["hang"].error)


SECRET = make_secret()


def headers_of(body: bytes, *, at: int, message_id: str = "msg_1") -> dict[str, str]:
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(at),
        "webhook-signature": sign(SECRET, message_id, at, body),
    }


def test_s32_the_signature_is_that_of_standard_webhooks() -> None:
    """The example of the specification (standard-webhooks libraries test with it)."""
    secret, body = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b'{"test": 2432232314}'

    signature = sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)

    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_s32_a_receiver_refuses_what_is_old_changed_or_unsigned_and_counts_repetitions_once() -> None:
    now, body = int(time.time()), b'{"type": "job.finished"}'
    receiver = Receiver(SECRET)
    good = headers_of(body, at=now)

    assert [receiver.take(good, body), receiver.take(good, body)] == [204, 204]
    assert receiver.take(headers_of(body, at=now - TOLERANCE_S - 2, message_id="old"), body) == 400
    assert receiver.take(headers_of(body, at=now + TOLERANCE_S + 2, message_id="new"), body) == 400
    assert receiver.take(good, body + b" ") == 400
    assert receiver.take({**good, "webhook-id": "msg_2"}, body) == 400
    assert receiver.take({**good, "webhook-timestamp": str(now + 1)}, body) == 400
    assert receiver.take({**good, "webhook-signature": "v1,AAAA"}, body) == 400
    assert receiver.take({name: value for name, value in good.items() if name != "webhook-signature"}, body) == 400
    assert len(receiver.events) == 1
    with pytest.raises(WebhookRefused):
        verify(make_secret(), good, body)


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[Ledger]:
    connected = Ledger(database_url)
    yield connected
    await connected.close()


async def registered(ledger: Ledger, url: str, *events: str) -> str:
    params = {"id": "wh_1", "tenant": "acme", "url": url, "events": list(events), "description": "", "secret": SECRET}
    await ledger.fetch(webhooks.CREATE, params)
    return "wh_1"


async def ended_job(ledger: Ledger) -> None:
    await settle(ledger, await claimed(ledger, 1), Decimal("0.25"))


async def test_s32_an_ended_job_is_told_once_signed_and_without_its_text(ledger: Ledger) -> None:
    receiver, requests = Receiver(SECRET), list[tuple[dict[str, str], bytes]]()
    async with listening(answering("200 OK", requests)) as url:
        await registered(ledger, url, "job.finished")
        await ended_job(ledger)
        await ledger.fetch('update payloads set body = \'{"prompt": "CANARY"}\'')
        sender = Postman(ledger, private=LOOPBACK)
        for _ in range(3):
            await ledger.fetch(webhooks.FIND_NEWS)
            await sender.round()

    [(headers, body)] = requests
    assert receiver.take(headers, body) == 204
    data = receiver.events[0]["data"]
    assert isinstance(data, dict)
    assert (data["state"], float(data["usd"]), data["intent"]) == ("succeeded", 0.25, "extraction")
    assert b"CANARY" not in body
    assert set(json.loads(body)) == {"type", "timestamp", "data"}


async def test_what_is_not_taken_is_tried_again_then_given_up_and_can_be_sent_again(ledger: Ledger) -> None:
    requests: list[tuple[dict[str, str], bytes]] = []
    sender = Postman(ledger, private=LOOPBACK)
    async with listening(answering("500 Oops", requests)) as url:
        await registered(ledger, url, "job.finished")
        await ended_job(ledger)
        await ledger.fetch(webhooks.FIND_NEWS)
        for _ in range(len(postman.WAITS_S) + 3):
            await sender.round()
            await ledger.fetch("update webhook_deliveries set due_at = now() where state = 'waiting'")
    [given_up] = await ledger.fetch("select id, state, tries, status from webhook_deliveries")
    assert (given_up["state"], given_up["tries"], given_up["status"]) == ("failed", len(postman.WAITS_S) + 1, 500)
    assert len({headers["webhook-id"] for headers, _ in requests}) == 1
    assert len(requests) == len(postman.WAITS_S) + 1

    async with listening(answering("204 Yes")) as url:
        await ledger.fetch("update webhooks set url = %(url)s", {"url": url})
        await ledger.fetch(webhooks.REDELIVER, {"id": given_up["id"], "tenant": "acme"})
        await sender.round()
    [row] = await ledger.fetch("select state from webhook_deliveries")
    assert row["state"] == "delivered"


async def test_gone_switches_a_webhook_off(ledger: Ledger) -> None:
    async with listening(answering("410 Gone")) as url:
        await registered(ledger, url, "job.finished")
        await ended_job(ledger)
        await ledger.fetch(webhooks.FIND_NEWS)
        await Postman(ledger, private=LOOPBACK).round()

    [row] = await ledger.fetch("select disabled_at is not null as off, disabled_why from webhooks")
    assert (row["off"], row["disabled_why"]) == (True, "the receiver said 410 Gone")


async def test_two_gateways_send_each_delivery_once(ledger: Ledger) -> None:
    requests: list[tuple[dict[str, str], bytes]] = []
    async with listening(answering("200 OK", requests)) as url:
        await registered(ledger, url, "job.finished")
        for _ in range(5):
            await ended_job(ledger)
        senders = [Postman(ledger, private=LOOPBACK) for _ in range(2)]
        await asyncio.gather(*(ledger.fetch(webhooks.FIND_NEWS) for _ in senders))
        await asyncio.gather(*(sender.round() for sender in senders))

    assert len(requests) == len({headers["webhook-id"] for headers, _ in requests}) == 5


async def test_a_budgets_alert_is_told(ledger: Ledger) -> None:
    budget = await set_budget(ledger, "5")
    received: list[tuple[dict[str, str], bytes]] = []
    async with listening(answering("200 OK", received)) as url:
        await registered(ledger, url, "budget.alert")
        await ledger.fetch(
            "insert into budget_alerts (budget_id, share, spent_usd, cap_usd) values (%(id)s, 80, 4, 5)", {"id": budget}
        )
        await ledger.fetch(webhooks.FIND_NEWS)
        await Postman(ledger, private=LOOPBACK).round()

    assert json.loads(received[0][1])["data"]["percent"] == 80


def test_s33_nothing_a_client_names_is_fetched(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Document and image URLs are no inputs of a job: they are text. Only webhooks make the gateway connect anywhere."""
    asked: list[object] = []
    real = socket.getaddrinfo

    def watching(host: object, *rest: object, **more: object) -> object:
        asked.append(host)
        return real(host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", watching)
    key = api.key()
    body = {
        "intent": "extraction",
        "prompt": "see http://canary.example/x",
        "metadata": {"url": "http://canary.example"},
    }

    assert api.post("/v1/jobs", key, json=body).status_code == 202
    assert api.post("/v1/jobs", key, json={**body, "document_url": "http://canary.example"}).status_code == 400
    assert not [host for host in asked if "canary" in str(host)]
