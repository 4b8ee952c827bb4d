"""Every name that our spans use. OpenTelemetry's GenAI conventions are in development and move: a rename is a change of this file.

Source: open-telemetry/semantic-conventions-genai, docs/gen-ai/gen-ai-spans.md, as of November 2026. There is no convention
for cost; `waybill.*` is ours. Input tokens include cached ones, as the convention wants and Anthropic's API does not.
"""

from __future__ import annotations

from typing import Final

OPERATION: Final = "gen_ai.operation.name"
CHAT: Final = "chat"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
REQUEST_STREAM: Final = "gen_ai.request.stream"
OUTPUT_TYPE: Final = "gen_ai.output.type"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_ID: Final = "gen_ai.response.id"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHE_READ: Final = "gen_ai.usage.cache_read.input_tokens"
CACHE_WRITE: Final = "gen_ai.usage.cache_creation.input_tokens"
REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"
ERROR_TYPE: Final = "error.type"
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
SYSTEM_INSTRUCTIONS: Final = "gen_ai.system_instructions"

JOB_ID: Final = "waybill.job.id"
JOB_STATE: Final = "waybill.job.state"
INTENT: Final = "waybill.intent"
PRIORITY: Final = "waybill.priority"
ATTEMPT: Final = "waybill.attempt"
ATTEMPT_STATE: Final = "waybill.attempt.state"
OUTCOME: Final = "waybill.outcome"
SERVICE: Final = "waybill.service"
COST: Final = "waybill.cost.usd"
COST_SOURCE: Final = "waybill.cost.source"
QUEUED_S: Final = "waybill.queued_seconds"

PROVIDER_NAMES: Final = {"anthropic": "anthropic", "openai": "openai", "local": "llama_cpp"}
