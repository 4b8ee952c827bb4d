"""`./run bench NAME [--json] ...`: the benchmarks of this folder. Each compares in one run; absolute times mean little."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path


def main() -> None:
    """Run the benchmark that the first argument names."""
    names = sorted(
        p.stem for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_") and p.stem != "naive_app"
    )
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        sys.exit(f"usage: ./run bench NAME [options]; names: {', '.join(names)}")
    import_module(f"bench.{sys.argv[1]}").main(sys.argv[2:])


main()
