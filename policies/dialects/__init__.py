"""The wire dialects, as pure functions: Chat Completions (`chat`), Responses (`responses`), Anthropic Messages (`messages`).

Where client and lane speak the same dialect, bytes go through unchanged. Elsewhere a request is read into one neutral form
and written in the lane's dialect, and the answer comes back the same way. What cannot be carried over raises
`Unsupported` with the parameter's name: nothing is dropped in silence. docs/gateway.md has the list.
"""
