"""API keys and tenants: how a key is made and recognised, and the statements that keep them.

A key is 256 random bits, shown once. The ledger has its SHA-256 only: whoever reads the table cannot use it, and a slow hash
would protect nothing that long and random.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from waybill.errors import ConfigError

SCOPES: Final = ("call", "jobs", "admin")
"""`call`: the OpenAI and Anthropic dialects. `jobs`: jobs, runs, files, batches, webhooks. `admin`: keys, tenants, budgets."""
DEFAULT_SCOPES: Final = ("call", "jobs")
_PREFIX: Final = "wb-"
_TENANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made.

    Attributes:
        id: Its name in listings and on jobs.
        secret: The key itself; nobody can show it again.
        hash, hint: What the ledger keeps.
    """

    id: str
    secret: str
    hash: str
    hint: str


def make_key() -> NewKey:
    """A new random key."""
    secret = _PREFIX + secrets.token_urlsafe(32)
    return NewKey(f"key_{secrets.token_hex(8)}", secret, hash_of(secret), secret[-4:])


def hash_of(secret: str) -> str:
    """What the ledger keeps of a key. Any text may be asked about."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def is_same(hash_a: str, hash_b: str) -> bool:
    """Compare two hashes in a time that does not tell where they differ."""
    return hmac.compare_digest(hash_a, hash_b)


def check_tenant(name: str) -> str:
    """The name, if a tenant can have it.

    Raises:
        ConfigError: With what a name may look like.
    """
    if not _TENANT.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be a tenant's name: up to 100 letters, digits, '_', '.', '-', beginning with a letter or digit"
        )
    return name


def check_scopes(scopes: Sequence[str]) -> list[str]:
    """The scopes, each once, in their order.

    Raises:
        ConfigError: One is unknown, or there is none.
    """
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown or not scopes:
        raise ConfigError(
            f"scope {unknown[0]!r} is unknown" if unknown else f"give at least one of {', '.join(SCOPES)}"
        )
    return [scope for scope in SCOPES if scope in scopes]


def is_expired(expires_at: datetime | None, now: datetime) -> bool:
    """Whether a key's time is over."""
    return expires_at is not None and expires_at <= now


CREATE: Final = """
with tenant as (
    insert into tenants (name) values (%(tenant)s) on conflict (name) do nothing
)
insert into api_keys (id, tenant, name, hash, hint, scopes, requests_per_minute, concurrency, expires_at)
values (%(id)s, %(tenant)s, %(name)s, %(hash)s, %(hint)s, %(scopes)s, %(requests_per_minute)s, %(concurrency)s, %(expires_at)s)
returning id, created_at
"""

FIND: Final = """
select k.id, k.tenant, k.hash, k.scopes, k.requests_per_minute, k.concurrency, k.expires_at, t.suspended_at
from api_keys k left join tenants t on t.name = k.tenant
where k.hash = %(hash)s and k.revoked_at is null
"""
"""By the hash of what was sent. Index api_keys_hash."""

ANY: Final = "select exists (select from api_keys where revoked_at is null) as there"

USED: Final = """
update api_keys set last_used_at = now() where id = any(%(ids)s) and (last_used_at is null or last_used_at < now() - interval '1 minute')
"""

LIST: Final = """
select id, tenant, name, hint, scopes, requests_per_minute, concurrency, created_at, expires_at, revoked_at, last_used_at
from api_keys
where (%(tenant)s::text is null or tenant = %(tenant)s) and (%(all)s or revoked_at is null)
order by tenant, created_at, id
"""

REVOKE: Final = """
update api_keys set revoked_at = now()
where id = %(id)s and revoked_at is null and (%(tenant)s::text is null or tenant = %(tenant)s) returning id
"""

ADD_TENANT: Final = (
    "insert into tenants (name, weight) values (%(name)s, %(weight)s) on conflict (name) do nothing returning name"
)

SUSPEND: Final = """
update tenants set suspended_at = case when %(suspended)s then coalesce(suspended_at, now()) end
where name = %(name)s returning name
"""

TENANTS: Final = """
select t.name, t.weight, t.created_at, t.suspended_at,
       (select count(*) from api_keys k where k.tenant = t.name and k.revoked_at is null) as keys,
       coalesce(s.usd, 0) as usd_30_days, coalesce(s.jobs, 0) as jobs_30_days
from tenants t
left join (
    select j.tenant, sum(a.cost_usd) as usd, count(distinct a.job_id) as jobs
    from attempts a join jobs j on j.id = a.job_id where a.started_at > now() - interval '30 days' group by j.tenant
) s on s.tenant = t.name
where %(name)s::text is null or t.name = %(name)s
order by t.name
"""
"""Index attempts_begun."""
