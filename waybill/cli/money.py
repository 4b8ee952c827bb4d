"""Amounts of money on the command line: `5`, `0.25`, `$200`."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any

import click


class Usd(click.ParamType[Decimal]):
    """An amount of money, exact."""

    name = "usd"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Decimal:
        """As Decimal; a dollar sign in front is fine."""
        try:
            amount = Decimal(str(value).removeprefix("$"))
        except InvalidOperation:
            amount = Decimal("NaN")
        if not amount.is_finite() or amount < 0:
            self.fail(f"{value!r} is not an amount in USD, such as 5 or 0.25", param, ctx)
        return amount


USD = Usd()
