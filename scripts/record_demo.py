"""Draws docs/demo.svg: the table that the demo ends with, from a report.json that `./run demo --once --report` wrote.

./run demo --once --report report.json && .venv/bin/python scripts/record_demo.py report.json docs/demo.svg
"""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

from rich.console import Console

from producers.report import table


def main(report: str, picture: str) -> None:
    """Read the report, draw its table."""
    figures = json.loads(Path(report).read_text(encoding="utf-8"))
    console = Console(record=True, width=114, file=io.StringIO())
    console.print("[bold green]$[/] ./run demo --once --report report.json", highlight=False)
    console.print(figures.get("note", ""), style="yellow")
    console.print(table(figures))
    if "bill_usd" in figures:
        console.print(f"ledger ${figures['usd']}, sandbox's own bill ${figures['bill_usd']}: equal")
    drawing = console.export_svg(title="waybill demo")
    # No fonts from elsewhere: whoever looks has a monospaced one.
    drawing = re.sub(r"@font-face \{.*?\}\s*", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r"<!--.*?-->", "", drawing, flags=re.DOTALL).replace("Fira Code, monospace", "monospace")
    Path(picture).write_text(drawing, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
