"""`python -m sandbox`."""

from __future__ import annotations

from sandbox.command import sandbox

if __name__ == "__main__":
    sandbox(prog_name="python -m sandbox")
