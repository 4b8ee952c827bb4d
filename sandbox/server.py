"""The application: takes a request, decides whether it may pass and what goes wrong, answers, bills and logs it.

The path of a request: key -> body -> dialect.parse -> fault -> limits -> generate -> deliver -> settle, bill, log.
Everything runs on one event loop, so nothing here needs a lock. Administration is in admin.py.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from pydantic_core import from_json, to_json

from sandbox import failures, messages, openai, ratelimits
from sandbox.answers import AnswerBook
from sandbox.batchapi import BatchApi, row_line
from sandbox.batches import Batch, Batches, Row
from sandbox.bill import Bill, cost_usd, plain
from sandbox.buckets import Cost, Meter, Meters
from sandbox.chat import Chat
from sandbox.connection import BodyTooLargeError, Exchange, Headers, Receive, Scope, Send
from sandbox.delivery import JSON_TYPE, Delivered, Delivery, deliver_stream, deliver_whole
from sandbox.exchange import ApiError, Asking, Call, Dialect, Identity, Json, Usage, invalid
from sandbox.faults import Faults, Rule, Target
from sandbox.generation import generate
from sandbox.latency import Latency
from sandbox.messages import Messages
from sandbox.models import Catalogue
from sandbox.promptcache import PromptCache
from sandbox.requestlog import RequestLog
from sandbox.responses import Responses

_MAX_BODY_BYTES = 32 * 1024 * 1024
_HTML = b"<!doctype html><html><head><title>Sign in</title></head><body><h1>Welcome to this network</h1></body></html>"
_NOTHING = Usage(0, 0)
# Keys that start with this word are refused, so that a client's handling of a bad key can be tried.
BAD_KEY = "invalid"


@dataclass(frozen=True, slots=True)
class Settings:
    """How a sandbox behaves from its start on."""

    seed: int = 0
    latency: Latency = field(default_factory=Latency)
    burst_s: float = 60.0
    log_path: Path | None = None
    log_keep: int = 50_000


class Clock:
    """Nanoseconds since the epoch, plus what an admin call advanced it by. Only limits, caches and faults go by it."""

    def __init__(self, base: Callable[[], int] = time.time_ns) -> None:
        self._base = base
        self.offset_ns = 0

    def now_ns(self) -> int:
        """Return the sandbox's time."""
        return self._base() + self.offset_ns


@dataclass(frozen=True, slots=True)
class _Turn:
    """One request that was understood."""

    exchange: Exchange
    dialect: Dialect
    identity: Identity
    account: str
    call: Call
    meter: Meter
    rule: Rule | None


@dataclass(slots=True)
class _Outcome:
    """What the log says about a request beyond the request itself."""

    usage: Usage = _NOTHING
    tier: str | None = None
    stop: str | None = None
    source: str | None = None
    delivered: bool = False
    billed: bool = False
    usd: Decimal = Decimal()
    error: str | None = None


class Sandbox:
    """The whole provider as an ASGI application."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        catalogue: Catalogue | None = None,
        book: AnswerBook | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.catalogue = catalogue or Catalogue()
        self.book = book or AnswerBook()
        self.clock = clock or Clock()
        self.latency = self.settings.latency
        self.cache = PromptCache()
        self.meters = Meters(burst_s=self.settings.burst_s)
        self.faults = Faults(seed=self.settings.seed)
        self.bill = Bill()
        self.log = RequestLog(self.settings.log_path, keep=self.settings.log_keep)
        self.in_flight = 0
        self.started_ns = self.clock.now_ns()
        self._messages = Messages(self.catalogue, self.cache)
        self._dialects: dict[str, Dialect] = {
            "/v1/messages": self._messages,
            "/v1/chat/completions": Chat(self.catalogue, self.cache),
            "/v1/responses": Responses(self.catalogue, self.cache),
        }
        self.batches = Batches(self.settings.seed, self._finish_row)
        self._batch_api = BatchApi(self, self._dialects)
        # Names are unique over restarts too, so that a ledger may keep them unique.
        self._boot = secrets.token_hex(6)
        self._serial = 0
        from sandbox.admin import Admin  # it needs this class for its types

        self._admin = Admin(self)

    def reset(self) -> None:
        """Forget bill, log, faults, levels, cache, batches and the clock's offset; keep limits, book, latency and pace."""
        self.bill = Bill()
        self.log.clear()
        self.faults.remove()
        self.meters.clear()
        self.cache.clear()
        self.batches.clear()
        self._batch_api.clear()
        self.clock.offset_ns = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send, time.perf_counter_ns())
        path = exchange.path
        if exchange.method == "POST" and (dialect := self._dialects.get(path)) is not None:
            self.in_flight += 1
            try:
                await self._serve(exchange, dialect)
            finally:
                self.in_flight -= 1
        elif self._batch_api.serves(path):
            await self._serve_batches(exchange)
        elif path.startswith("/v1/"):
            await self._serve_small(exchange)
        else:
            await self._admin.serve(exchange)

    # -- one generation --------------------------------------------------------------------------------------------

    async def _serve(self, exchange: Exchange, dialect: Dialect) -> None:
        identity, outcome = self._identity(), _Outcome()
        account, turn = "", None
        try:
            account = self._account(exchange)
            body = await _json_body(exchange)
            turn = self._understand(exchange, dialect, identity, account, body)
            if turn.rule is not None and not turn.rule.kind.billed:
                await self._fail_early(turn, turn.rule, outcome)
            else:
                await self._generate(turn, outcome)
        except ApiError as error:
            outcome.error = error.kind
            await self._refuse(exchange, dialect.provider, error, identity, account, turn.meter if turn else None)
        except asyncio.CancelledError:
            # The server stops, and has dropped the connection already (serving.py); nothing is left to do but the log.
            outcome.error = "stopped"
        self._record(exchange, dialect, identity, account, turn, outcome)

    def _understand(self, exchange: Exchange, dialect: Dialect, identity: Identity, account: str, body: Json) -> _Turn:
        now_ns = self.clock.now_ns()
        call = dialect.parse(body, Asking(account, now_ns, exchange.header(b"anthropic-version")))
        meter = self.meters.meter(account, dialect.provider, call.model.limit_class, now_ns)
        rule = None
        if self.faults:
            target = Target(call.model.id, dialect.endpoint, call.tier, call.stream, call.user_text)
            rule = self.faults.pick(target, now_ns)
        return _Turn(exchange, dialect, identity, account, call, meter, rule)

    async def _generate(self, turn: _Turn, outcome: _Outcome) -> None:
        call, meter, rule = turn.call, turn.meter, turn.rule
        reserved, now_ns = _reservation(call), self.clock.now_ns()
        if (empty := meter.admit(reserved, now_ns)) is not None:
            raise ratelimits.refusal(empty, meter, turn.account, call.model.id)
        generation = generate(call, self.book, rule)
        downgraded = rule is not None and rule.kind.name == "tier_downgrade"
        generation.tier = "default" if downgraded else call.tier
        outcome.tier, outcome.stop, outcome.source = generation.tier, generation.stop.value, generation.source
        self.cache.commit(call.cache, now_ns)
        provider = turn.dialect.provider
        delivery = Delivery(
            exchange=turn.exchange,
            dialect=turn.dialect,
            call=call,
            generation=generation,
            rule=rule,
            identity=turn.identity,
            headers=[*_names(provider, turn.identity, turn.account), *ratelimits.headers(meter, now_ns)],
            first_s=self.latency.first_s(call.model, generation.latency_s)
            + (rule.delay_s if rule is not None and rule.kind.name == "slow" else 0.0),
            per_token_s=self.latency.per_token_s(call.model, generation.latency_s, generation.usage.output),
            began=lambda: self.cache.begin(call.cache),
        )
        # What a cancelled task (the server stops) had produced is unknown: billed like a client that left at once.
        delivered = Delivered(0, complete=False)
        try:
            delivered = await (deliver_stream(delivery) if call.stream else deliver_whole(delivery))
        finally:
            usage = generation.usage
            if delivered.produced < usage.output:
                usage = replace(usage, output=delivered.produced, thinking=min(usage.thinking, delivered.produced))
            outcome.usage, outcome.delivered = usage, delivered.complete
            meter.settle(reserved, _used(usage), self.clock.now_ns())
            if rule is None or rule.is_billed:
                self._charge(turn, usage, generation.tier, outcome)

    async def _fail_early(self, turn: _Turn, rule: Rule, outcome: _Outcome) -> None:
        """Do what a fault does before a model runs; with `billed` the model ran and only its answer was lost."""
        if rule.billed:
            generation = generate(turn.call, self.book, None)
            outcome.usage, outcome.tier, outcome.source = generation.usage, turn.call.tier, generation.source
            self._charge(turn, generation.usage, turn.call.tier, outcome)
        match rule.kind.name:
            case "hang":
                await turn.exchange.until_client_leaves()
            case "reset":
                await turn.exchange.reset()
            case "html":
                await turn.exchange.respond(200, [(b"content-type", b"text/html; charset=utf-8")], _HTML)
            case _:
                raise failures.error_of(rule, turn.dialect.provider)

    async def _refuse(
        self, exchange: Exchange, provider: str, error: ApiError, identity: Identity, account: str, meter: Meter | None
    ) -> None:
        body = failures.body_of(error, provider, identity.request_id)
        sent = [JSON_TYPE, *_names(provider, identity, account), *ratelimits.retry_after(error, provider)]
        if meter is not None:
            sent += ratelimits.headers(meter, self.clock.now_ns())
        await exchange.respond(error.status, sent, to_json(body))

    # -- bill and log ----------------------------------------------------------------------------------------------

    def _charge(self, turn: _Turn, usage: Usage, tier: str, outcome: _Outcome) -> None:
        call = turn.call
        usd = cost_usd(call.model, usage, tier=tier, multiplier_permille=call.multiplier_permille)
        self.bill.add(call.model, usage, usd, tier=tier, account=turn.account)
        outcome.billed, outcome.usd = True, usd

    def _record(
        self,
        exchange: Exchange,
        dialect: Dialect,
        identity: Identity,
        account: str,
        turn: _Turn | None,
        outcome: _Outcome,
    ) -> None:
        usage, call, rule = outcome.usage, turn.call if turn else None, turn.rule if turn else None
        self.log.add(
            {
                "time": _time(time.time_ns()),
                "request_id": identity.request_id,
                "account": account,
                "endpoint": dialect.endpoint,
                "model": call.model.id if call else None,
                "requested_model": call.requested_model if call else None,
                "stream": call.stream if call else None,
                "text_sha256": sha256(call.user_text.encode("utf-8", "surrogatepass")).hexdigest() if call else None,
                "job": exchange.header(b"x-waybill-job"),
                "attempt": exchange.header(b"x-waybill-attempt"),
                "status": exchange.status,
                "error": outcome.error,
                "fault": rule.kind.name if rule else None,
                "fault_id": rule.id if rule else None,
                "source": outcome.source,
                "stop": outcome.stop,
                "tier": outcome.tier,
                "usage": {
                    "input_tokens": usage.input,
                    "cache_write_tokens": usage.cache_write_short,
                    "cache_write_long_tokens": usage.cache_write_long,
                    "cache_read_tokens": usage.cache_read,
                    "output_tokens": usage.output,
                    "thinking_tokens": usage.thinking,
                },
                "delivered": outcome.delivered,
                "billed": outcome.billed,
                "usd": plain(outcome.usd),
                "duration_ms": (time.perf_counter_ns() - exchange.started_ns) // 1_000_000,
            }
        )

    # -- batches ---------------------------------------------------------------------------------------------------

    async def _serve_batches(self, exchange: Exchange) -> None:
        identity = self._identity()
        provider = "anthropic" if exchange.path.startswith("/v1/messages/") else "openai"
        account = ""
        try:
            account = self._account(exchange)
            answer = await self._batch_api.serve(exchange, account, identity)
        except BodyTooLargeError:
            error = ApiError(413, "too_large", "the request is larger than a batch may be")
            await self._refuse(exchange, provider, error, identity, account, None)
            return
        except ApiError as error:
            await self._refuse(exchange, provider, error, identity, account, None)
            return
        if answer is not None:
            lines = isinstance(answer, bytes)
            kind = (b"content-type", b"application/x-jsonl") if lines else JSON_TYPE
            body = answer if isinstance(answer, bytes) else to_json(answer)
            await exchange.respond(200, [kind, *_names(provider, identity, account)], body)

    def _finish_row(self, batch: Batch, row: Row, how: str) -> None:
        """Give a row of a batch that has ended its outcome, its line in the results, its charge and its log entry."""
        identity, call, rule = self._identity(), row.call, row.rule
        error, usage, usd = row.error, _NOTHING, Decimal()
        if how == "done" and error is None and rule is not None and not rule.kind.billed:
            error = failures.error_of(rule, batch.provider)
        row.outcome = "errored" if error is not None else "succeeded" if how == "done" else how
        answer: Json | None = None
        if error is not None:
            answer = failures.body_of(error, batch.provider, identity.request_id)
        elif row.outcome == "succeeded" and call is not None:
            generation = generate(call, self.book, rule)
            # OpenAI says `default` of what it bills as a batch; Anthropic tells the truth.
            generation.tier = "batch" if batch.provider == "anthropic" else "default"
            self.cache.commit(call.cache, self.clock.now_ns())
            self.cache.begin(call.cache)
            usage, answer = generation.usage, batch.dialect.whole(call, generation, identity)
            usd = cost_usd(call.model, usage, tier="batch", multiplier_permille=call.multiplier_permille)
            self.bill.add(call.model, usage, usd, tier="batch", account=batch.account)
        row.line = row_line(batch.provider, row, answer, identity, error)
        self.log.add(
            {
                "time": _time(time.time_ns()),
                "request_id": identity.request_id,
                "account": batch.account,
                "endpoint": "batch",
                "batch": batch.id,
                "job": row.custom_id,
                "model": call.model.id if call else None,
                "outcome": row.outcome,
                "fault": rule.kind.name if rule else None,
                "tier": "batch",
                "usage": {"input_tokens": usage.prompt, "output_tokens": usage.output},
                "delivered": row.outcome == "succeeded",
                "billed": row.outcome == "succeeded",
                "usd": plain(usd),
            }
        )

    # -- the endpoints that generate nothing -----------------------------------------------------------------------

    async def _serve_small(self, exchange: Exchange) -> None:
        identity = self._identity()
        provider = "anthropic" if b"anthropic-version" in exchange.headers else "openai"
        account, meter = "", None
        try:
            account = self._account(exchange)
            if exchange.method == "POST" and exchange.path == "/v1/messages/count_tokens":
                provider = "anthropic"
                now_ns = self.clock.now_ns()
                meter = self.meters.meter(account, provider, "count_tokens", now_ns)
                if (empty := meter.admit(Cost(0, 0, 0), now_ns)) is not None:
                    raise ratelimits.refusal(empty, meter, account, "count_tokens")
                asking = Asking(account, now_ns, exchange.header(b"anthropic-version"))
                answer: Json = {"input_tokens": self._messages.count(await _json_body(exchange), asking)}
            elif exchange.method == "GET" and exchange.path == "/v1/models":
                answer = self._model_list(provider)
            elif exchange.method == "GET" and exchange.path.startswith("/v1/models/"):
                answer = self._model_one(provider, exchange.path.removeprefix("/v1/models/"))
            else:
                raise ApiError(
                    404,
                    "not_found",
                    f"{exchange.method} {exchange.path} is not served by this sandbox",
                    code="unknown_url",
                )
        except ApiError as error:
            await self._refuse(exchange, provider, error, identity, account, meter)
            return
        sent = [JSON_TYPE, *_names(provider, identity, account)]
        if meter is not None:
            sent += ratelimits.headers(meter, self.clock.now_ns())
        await exchange.respond(200, sent, to_json(answer))

    def _model_list(self, provider: str) -> Json:
        models = self.catalogue.of(provider)
        if provider == "openai":
            return {"object": "list", "data": [openai.model_info(model) for model in models]}
        data = [messages.model_info(model) for model in models]
        return {"data": data, "has_more": False, "first_id": data[0]["id"], "last_id": data[-1]["id"]}

    def _model_one(self, provider: str, name: str) -> Json:
        model = self.catalogue.find(name, provider)
        if model is None:
            raise ApiError(404, "not_found", f"model: {name}")
        return messages.model_info(model) if provider == "anthropic" else openai.model_info(model)

    # -- names -----------------------------------------------------------------------------------------------------

    def _account(self, exchange: Exchange) -> str:
        key = exchange.header(b"x-api-key")
        if not key:
            scheme, _, key = (exchange.header(b"authorization") or "").partition(" ")
            key = key.strip() if scheme.lower() == "bearer" else ""
        if not key:
            raise ApiError(401, "authentication", "no API key was sent; the sandbox takes any key, such as sandbox-1")
        if key.startswith(BAD_KEY):
            raise ApiError(
                401, "authentication", f"this key starts with {BAD_KEY!r}, which the sandbox refuses on purpose"
            )
        return _account_name(key)

    def _identity(self) -> Identity:
        self._serial += 1
        name = f"{self._boot}{self._serial:010x}"
        return Identity(request_id=f"req_{name}", answer_id=name, created=int(time.time()))


def _names(provider: str, identity: Identity, account: str) -> Headers:
    """Return the headers that name the request and whose it is."""
    request_id = identity.request_id.encode()
    if provider == "anthropic":
        return [(b"request-id", request_id), (b"anthropic-organization-id", account.encode())]
    return [
        (b"x-request-id", request_id),
        (b"openai-organization", account.encode()),
        (b"openai-version", b"2020-10-01"),
    ]


@lru_cache(maxsize=10_000)
def _account_name(key: str) -> str:
    return f"acct_{sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


async def _json_body(exchange: Exchange) -> Json:
    try:
        raw = await exchange.body(_MAX_BODY_BYTES)
    except BodyTooLargeError as exc:
        raise ApiError(413, "too_large", f"the request is larger than {_MAX_BODY_BYTES} bytes") from exc
    try:
        body = from_json(raw, allow_inf_nan=False)
    except ValueError as exc:
        raise invalid(f"the request body is not valid JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise invalid("the request body must be a JSON object")
    return body


def _reservation(call: Call) -> Cost:
    """Return what a call takes from the buckets when it starts: its output at the most it may become."""
    written = call.cache.write_short_tokens + call.cache.write_long_tokens
    fresh = max(0, call.prompt_tokens - call.cache.read_tokens - written) + written
    allowed = call.max_tokens or 0
    return Cost(input_tokens=fresh, output_tokens=allowed, tokens=call.prompt_tokens + allowed)


def _used(usage: Usage) -> Cost:
    """Return what a call took in the end; Claude's cache reads do not count, OpenAI's do."""
    return Cost(usage.input + usage.cache_write, usage.output, usage.prompt + usage.output)


def _time(now_ns: int) -> str:
    second, rest = divmod(now_ns, 1_000_000_000)
    return f"{ratelimits.rfc3339(second).decode()[:-1]}.{rest // 1000:06d}Z"
