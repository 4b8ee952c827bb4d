"""A model provider on loopback: it speaks both wire formats, keeps real limits and a real prompt cache, misbehaves on
demand and prints its own bill.

Imports nothing of the rest of the repository, so its bill and its log are a second opinion about the fleet's ledger.
Start it with `python -m sandbox`; read docs/sandbox.md for the rules it keeps and `sandbox.testing` for use in tests.
"""
