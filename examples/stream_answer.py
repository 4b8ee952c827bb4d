"""Show an answer while it is made."""

from __future__ import annotations

from waybill import Client

with Client.from_env() as client:
    for piece in client.stream(intent="reasoning", prompt="Why does ice float?"):
        print(piece, end="", flush=True)
    print()
