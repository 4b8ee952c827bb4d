"""Which providers this process can reach, and how each is made. Knowing whether one is on costs no SDK import."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from policies.policyfile import Policy
from waybill.errors import ConfigError
from waybill.names import BATCH_QUEUE, PROVIDERS
from waybill.settings import Settings

if TYPE_CHECKING:
    from workers.providers.base import Provider
    from workers.providers.batches import BatchProvider


def default_local_model() -> Path:
    """Where `./run` puts the small default model."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "waybill" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def available(settings: Settings, policy: Policy) -> Mapping[str, str | None]:
    """For each provider: None when its lanes are on, else why they are off."""
    return {
        "anthropic": None if settings.anthropic_api_key else "no ANTHROPIC_API_KEY",
        "openai": None if settings.openai_api_key else "no OPENAI_API_KEY",
        "local": _local_obstacle(settings, policy),
    }


def without_workers(having: Sequence[str]) -> Mapping[str, str]:
    """The providers (and the batch lane) that nobody serves, by what WAYBILL_PROVIDERS says; each with the reason."""
    return {name: "no workers (WAYBILL_PROVIDERS)" for name in (*PROVIDERS, BATCH_QUEUE) if name not in having}


def _local_obstacle(settings: Settings, policy: Policy) -> str | None:
    if not any(model.provider == "local" for model in policy.models.values()):
        return "the policy knows no local model"
    if settings.local_server_url is not None:
        return None
    if find_spec("llama_cpp") is None:
        return "llama-cpp-python is not installed (./run builds it where a C++ compiler is found)"
    path = settings.local_model or default_local_model()
    if not path.is_file():
        return f"no model file {path.name}; set WAYBILL_LOCAL_MODEL to a GGUF file"
    return None


def make_provider(name: str, settings: Settings, policy: Policy) -> Provider:
    """Connect to a provider whose lanes are on.

    Raises:
        ConfigError: A URL, key or model file is unusable.
    """
    if name == "anthropic" and settings.anthropic_api_key is not None:
        from workers.providers.anthropic import AnthropicProvider

        return AnthropicProvider(settings.anthropic_api_key.get_secret_value(), settings.anthropic_base_url)
    if name == "openai" and settings.openai_api_key is not None:
        from workers.providers.openai import OpenAIProvider

        return OpenAIProvider(settings.openai_api_key.get_secret_value(), settings.openai_base_url)
    if name == "local" and settings.local_server_url is not None:
        from workers.providers.openai import OpenAIProvider

        return OpenAIProvider(
            "local", settings.local_server_url, "local", compatible=True, model_name=settings.local_server_model
        )
    if name == "local":
        from workers.providers.local import LocalProvider

        return LocalProvider(
            settings.local_model or default_local_model(),
            sha256=settings.local_model_sha256,
            context_tokens=settings.local_context_tokens,
            threads=settings.local_threads,
        )
    raise ConfigError(f"provider {name!r} cannot be made: {available(settings, policy).get(name, 'unknown provider')}")


def batches_of(provider: Provider) -> BatchProvider | None:
    """The batch endpoints of an account; None where its provider has none."""
    from workers.providers.anthropic import AnthropicProvider
    from workers.providers.openai import OpenAIProvider

    if isinstance(provider, AnthropicProvider):
        from workers.providers.anthropic_batches import AnthropicBatches

        return AnthropicBatches(provider)
    if isinstance(provider, OpenAIProvider) and provider.name == "openai":
        from workers.providers.openai_batches import OpenAIBatches

        return OpenAIBatches(provider)
    return None
