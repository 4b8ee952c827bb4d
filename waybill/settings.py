"""One frozen Settings, read from the environment once; a wrong value stops the start with the variable's name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from waybill.errors import ConfigError
from waybill.names import ENV_PREFIX

# Variables that already have a well-known name elsewhere keep it.
FOREIGN_NAMES = {
    "anthropic_api_key": "ANTHROPIC_API_KEY",
    "openai_api_key": "OPENAI_API_KEY",
    "anthropic_base_url": "ANTHROPIC_BASE_URL",
    "openai_base_url": "OPENAI_BASE_URL",
}


class Settings(BaseModel):
    """Everything that is configured by environment. `WAYBILL_` + the field's name in capitals, unless noted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    database_url: SecretStr | None = None
    """postgresql+psycopg://user:password@host:port/database"""
    redis_url: SecretStr | None = None
    """redis://:password@host:port/db: hints, doorbells and, unless `broker_url` is given, the broker. With Sentinels:
    redis+sentinel://:password@host:26379,host:26379/db?master=NAME"""
    broker_url: SecretStr | None = None
    """Celery's broker where it is not Redis."""
    state_dir: Path = Path(".waybill")
    """Where the embedded servers and logs of `waybill up` live."""
    policy_file: Path | None = None
    """Routing policy (TOML); None = the one that ships."""

    anthropic_api_key: SecretStr | None = None
    """ANTHROPIC_API_KEY; absent = Claude's lanes are off. Several keys with commas are accounts with limits of their own."""
    openai_api_key: SecretStr | None = None
    """OPENAI_API_KEY; absent = OpenAI's lanes are off. Several keys: as above."""
    anthropic_base_url: str | None = None
    openai_base_url: str | None = None
    local_model: Path | None = None
    """A GGUF file for the in-process local lane; None = the cached SmolLM2 where `./run` fetched it."""
    local_model_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Expected hash of `local_model`; a different file is refused."""
    local_server_url: str | None = None
    """An OpenAI-compatible server (llama-server, Ollama, vLLM) instead of the in-process model, e.g. http://127.0.0.1:8080/v1"""
    local_server_model: str | None = None
    """What that server calls its model; None = the id that the policy's chain names."""
    local_threads: int = Field(default=2, ge=1, le=256)
    local_context_tokens: int = Field(default=4096, ge=512)

    concurrency: int = Field(default=50, ge=1, le=5000)
    """Messages (of up to 10 jobs) that one worker process holds in flight."""
    lane_concurrency: int = Field(default=200, ge=1, le=5000)
    """Calls to one lane (provider + model) that one worker process has under way at most."""
    limiter_scope: str = Field(default="fleet", pattern=r"^(fleet|process)$")
    """Whose the rate limits are: the fleet's; `process` gives each process all of them, to measure what that costs."""
    call_timeout_s: float = Field(default=600, gt=0)
    """Total time of one call to a provider."""
    idle_timeout_s: float = Field(default=60, gt=0)
    """Longest silence between two events of a stream."""
    lease_s: float = Field(default=12, ge=2)
    """A claimed job whose worker says nothing for this long is taken over."""
    drain_s: float = Field(default=45, ge=0)
    """On SIGTERM: how long a worker waits for its calls before handing the rest back."""
    max_payload_bytes: int = Field(default=8 * 1024 * 1024, ge=1024)
    providers: str | None = Field(
        default=None, pattern=r"^(anthropic|openai|local|batch)(,(anthropic|openai|local|batch))*$"
    )
    """Providers that have workers (and `batch`, where the batch lane has one), with commas, for a dispatcher on another
    machine; None = those it could serve itself."""
    heartbeat_file: Path | None = None
    """Written every 5 s by worker, dispatcher and control, read by `waybill probe`; None = none."""
    gateway_address: str = "127.0.0.1"
    """Where `waybill gateway` listens. Anything but loopback needs keys."""
    gateway_port: int = Field(default=8787, ge=1, le=65535)
    gateway_public_url: str | None = Field(default=None, pattern=r"^https?://[^\s]+$")
    """How clients reach the gateway, for links in its answers; None = address and port."""
    webhook_networks: str | None = Field(default=None, pattern=r"^[0-9a-fA-F.:/, ]+$")
    """Private networks that webhooks may go to all the same, also without TLS, with commas: 10.1.0.0/16,127.0.0.0/8"""
    flower_address: str = "127.0.0.1"
    """0.0.0.0 in a pod, where a NetworkPolicy stands before it."""
    flower_port: int = Field(default=5555, ge=0, le=65535)
    flower_user: str = "waybill"
    flower_public_url: str | None = Field(default=None, pattern=r"^https?://[^\s]+$")
    """Where people reach Flower; the dashboard links to it."""
    flower_password: SecretStr | None = None
    """None = a random one is made and printed once by `waybill up`."""
    dev: bool = False
    """A machine of one's own: Redis may be open to everybody."""
    task_events: bool = True
    """Whether workers tell Flower of their tasks; without, its list of tasks stays empty."""
    trace_text: bool = False
    """Whether spans carry prompts and answers. Spans are sent where OTEL_EXPORTER_OTLP_ENDPOINT says; without it there are none."""
    log_format: str = Field(default="json", pattern=r"^(text|json)$")
    """Of the fleet's processes: one JSON object a line, or `text` for a terminal (what `waybill up` gives them)."""
    metrics_address: str = "127.0.0.1"
    """Where `waybill metrics` listens; 0.0.0.0 in a pod, where a NetworkPolicy stands before it."""
    metrics_port: int = Field(default=9464, ge=0, le=65535)
    log_level: str = Field(default="INFO", pattern=r"^(DEBUG|INFO|WARNING|ERROR)$")

    @classmethod
    def variable(cls, name: str) -> str:
        """The environment variable of a field."""
        return FOREIGN_NAMES.get(name, f"{ENV_PREFIX}{name.upper()}")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read the environment.

        Raises:
            ConfigError: A variable has an unusable value; the message names it.
        """
        environ = os.environ if environ is None else environ
        known = {cls.variable(name): name for name in cls.model_fields}
        values: dict[str, Any] = {known[var]: value for var, value in environ.items() if var in known and value != ""}
        try:
            return cls(**values)
        except ValidationError as exc:
            first = exc.errors()[0]
            name = cls.variable(str(first["loc"][0]))
            raise ConfigError(f"{name}: {first['msg']} (got {environ.get(name, '')!r})") from None

    def require_database_url(self) -> str:
        """The ledger's URL.

        Raises:
            ConfigError: WAYBILL_DATABASE_URL is not set.
        """
        if self.database_url is None:
            raise ConfigError(
                "WAYBILL_DATABASE_URL is not set; give postgresql+psycopg://user:password@host/database,"
                " or use `waybill up`, which brings its own Postgres"
            )
        return self.database_url.get_secret_value()

    def require_redis_url(self) -> str:
        """The URL of Redis or Valkey.

        Raises:
            ConfigError: WAYBILL_REDIS_URL is not set.
        """
        if self.redis_url is None:
            raise ConfigError(
                "WAYBILL_REDIS_URL is not set; give redis://:password@host:6379/0,"
                " or use `waybill up`, which brings its own Valkey"
            )
        return self.redis_url.get_secret_value()

    def require_broker_url(self) -> str:
        """Celery's broker: `broker_url`, else Redis."""
        return self.broker_url.get_secret_value() if self.broker_url else self.require_redis_url()
