"""One API in front of the fleet: OpenAI Chat Completions and Responses, Anthropic Messages. docs/gateway.md."""
