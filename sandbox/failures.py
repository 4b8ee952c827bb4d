"""The error each fault stands for at the provider it falls on, and the body of an error in that provider's shape."""

from __future__ import annotations

from sandbox import messages, openai
from sandbox.exchange import ApiError, Json
from sandbox.faults import Rule


def body_of(error: ApiError, provider: str, request_id: str) -> Json:
    """Return the error as the provider writes it."""
    return messages.error_body(error, request_id) if provider == "anthropic" else openai.error_body(error)


def overloaded(provider: str) -> ApiError:
    """Return the error of a provider with too much to do."""
    return ApiError(529 if provider == "anthropic" else 503, "overloaded", "Overloaded")


def error_of(rule: Rule, provider: str) -> ApiError:
    """Return the error of a fault that ends a request before a model runs."""
    wait_s = rule.retry_after_s
    match rule.kind.name:
        case "rate_limit":
            return ApiError(429, "rate_limit", "This request would exceed your rate limit.", retry_after_s=wait_s)
        case "rate_limit_bare":
            return ApiError(429, "rate_limit", "This request would exceed your rate limit.")
        case "ramp_limit":
            return ApiError(429, "ramp_limit", "Usage is growing too fast; slow down.", retry_after_s=wait_s)
        case "spend_limit" | "insufficient_quota":
            return ApiError(429, "spend_limit", "You have reached the spend limit of this billing period.")
        case "overloaded":
            return overloaded(provider)
        case "unavailable":
            return ApiError(503, "unavailable", "The service is temporarily unavailable.")
        case "unauthorized":
            return ApiError(401, "authentication", "The API key was withdrawn.")
        case "forbidden":
            return ApiError(403, "permission", "Your key may not use this model.")
        case "flex_unavailable":
            message = "No flex capacity is available; try again later or use the default tier."
            return ApiError(
                429, "rate_limit", message, code="resource_unavailable", kind_in_dialect="resource_unavailable"
            )
        case _:
            return ApiError(500, "server_error", "Internal server error")
