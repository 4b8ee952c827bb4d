"""Where a webhook may go: one function says so, at registration and before every try.

A name is resolved once; every address it has must be public; the connection goes to the address that was checked. So a name
that resolves to something else a moment later changes nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from waybill.errors import WaybillError

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolver = Callable[[str, int], Awaitable[Sequence[str]]]

RESOLVE_S: Final = 5.0
_HOST: Final = re.compile(
    r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?)*\.?"
)
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")


class AddressRefused(WaybillError):
    """A webhook must not go there; the message says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """A checked place: connect to `address`, speak as `host`."""

    address: str
    host: str
    port: int
    path: str
    is_tls: bool


async def resolve(host: str, port: int) -> Sequence[str]:
    """All addresses of a name."""
    async with asyncio.timeout(RESOLVE_S):
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


async def check(url: str, *, private: Sequence[IpNetwork] = (), resolver: Resolver = resolve) -> Target:
    """The place of a URL.

    Args:
        url: As the tenant gave it.
        private: Networks of our own that are allowed all the same, also without TLS (development, own receivers).
        resolver: Asked once.

    Raises:
        AddressRefused: It is no https URL of a public host.
    """
    if len(url) > 2000 or not url.isascii() or any(char <= " " or char in '\\"<>^`{|}' for char in url):
        raise AddressRefused("a webhook's URL has at most 2,000 printable ASCII characters and no spaces")
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise AddressRefused("this is not a URL") from None
    if parts.scheme not in ("https", "http"):
        raise AddressRefused(f"a webhook's URL begins with https://, not {parts.scheme or 'nothing'}:")
    if "@" in parts.netloc:
        raise AddressRefused("a webhook's URL must not hold a user or password")
    if parts.fragment:
        raise AddressRefused("a webhook's URL must not have a fragment")
    is_tls = parts.scheme == "https"
    port = port if port is not None else (443 if is_tls else 80)
    literal = _literal(host)
    if literal is None and not _HOST.fullmatch(host):
        raise AddressRefused(f"{host!r} is no host name")
    # Only dotted decimal is an address; 2130706433, 0x7f.1 and 127.1 are forms that resolvers differ about.
    if literal is None and re.fullmatch(r"[0-9.]+|.*\.?0x[0-9a-f]*", host.rstrip(".")):
        raise AddressRefused(f"write the address {host!r} in the usual form, or use a name")
    if literal is not None:
        addresses: Sequence[str] = [str(literal)]
    else:
        try:
            addresses = await resolver(host, port)
        except (OSError, UnicodeError, TimeoutError):
            raise AddressRefused(f"{host} has no address") from None
    if not addresses:
        raise AddressRefused(f"{host} has no address")
    found = [ipaddress.ip_address(address.partition("%")[0]) for address in addresses]
    allowed = [
        any(_plain(address) in network for network in private if network.version == _plain(address).version)
        for address in found
    ]
    for address, is_ours in zip(found, allowed, strict=True):
        if not is_ours and not is_public(address):
            raise AddressRefused(
                f"{host} is an address inside a private or special network; webhooks go to public hosts"
            )
    if not is_tls and not all(allowed):
        raise AddressRefused("a webhook's URL begins with https://")
    path = parts.path or "/"
    return Target(str(found[0]), host, port, f"{path}?{parts.query}" if parts.query else path, is_tls)


def is_public(address: IpAddress) -> bool:
    """Whether the address is one that anybody on the internet can have, whatever it is wrapped in."""
    plain = _plain(address)
    return plain.is_global and not plain.is_multicast and not plain.is_reserved and not plain.is_unspecified


def _plain(address: IpAddress) -> IpAddress:
    """The IPv4 address inside an IPv6 address, where there is one."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _NAT64 or int(address) < 2**32:  # ::a.b.c.d, long out of use
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _literal(host: str) -> IpAddress | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def networks(text: str | None) -> tuple[IpNetwork, ...]:
    """The networks of WAYBILL_WEBHOOK_NETWORKS, with commas.

    Raises:
        ValueError: One is none.
    """
    return tuple(ipaddress.ip_network(part.strip()) for part in (text or "").split(",") if part.strip())
