"""Lengths of time on the command line: `90`, `45s`, `15m`, `24h`, `2d`."""

from __future__ import annotations

import re
from typing import Any

import click

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Duration(click.ParamType[float]):
    """Seconds, as a float."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read `24h`; a bare number is seconds."""
        if isinstance(value, int | float):
            return float(value)
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h|d|)", str(value).strip().lower())
        if found is None or float(found.group(1)) <= 0:
            self.fail(f"{value!r} is no length of time; write seconds, or 15m, 24h, 2d", param, ctx)
        return float(found.group(1)) * _UNITS[found.group(2)]


DURATION = Duration()
