"""Whether extracted values stand in the source: verbatim apart from case, blanks and punctuation, or as the same date or amount.

A value that the source does not hold was made up or computed; for extraction both are wrong (measured on receipts and slot
filling: none of the ungrounded values was right, reference figures in docs/quality.md). What is compared: texts and numbers
of the answer, never booleans, nulls, or texts for which the schema lists the values allowed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any, Final

_WORD: Final = re.compile(r"\w+")
# A blank or apostrophe groups thousands where three digits follow it; else it stands between two numbers.
_GROUPED: Final = re.compile(r"(?<![\d.,])\d{1,3}(?:[' \u00a0]\d{3})+(?:[.,]\d+)?(?!\d)")
_PLAIN: Final = re.compile(r"\d+(?:[.,]\d+)*")
_AMOUNT: Final = re.compile(f"{_GROUPED.pattern}|{_PLAIN.pattern}")
_DATE: Final = re.compile(r"\d{1,4}[-/. ]\d{1,2}[-/. ]\d{1,4}|\d{8}")
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH: Final = rf"({'|'.join(_MONTHS)})[a-z]{{0,6}}"
_NAMED_DATE: Final = re.compile(
    rf"\b(\d{{1,2}})(?:st|nd|rd|th)?[-/. ,]*{_MONTH}[-/. ,]*(\d{{4}}|\d{{2}})\b"
    rf"|\b{_MONTH}[-/. ]*(\d{{1,2}})(?:st|nd|rd|th)?[-/. ,]+(\d{{4}})\b"
)
PLACEHOLDERS: Final = frozenset(
    {"", "n/a", "na", "none", "null", "nil", "unknown", "not available", "not found", "not specified", "not provided"}
    | {
        "tbd",
        "todo",
        "string",
        "...",
        "…",
        "-",
        "--",
        "?",
        "xxx",
        "lorem ipsum",
        "placeholder",
        "<unknown>",
        "[unknown]",
    }
)
"""Texts that fill a field without saying anything."""


@dataclass(slots=True)
class Source:
    """A text that values are looked up in; what is looked up often is worked out once."""

    text: str
    _phrase: str = field(init=False)
    _words: frozenset[str] = field(init=False)
    _numbers: frozenset[Decimal] | None = None
    _dates: frozenset[tuple[int, int, int]] | None = None

    def __post_init__(self) -> None:
        words = _words(self.text)
        self._phrase = f" {' '.join(words)} "
        self._words = frozenset(words)

    def holds(self, value: str | int | float | Decimal) -> bool:
        """Whether the value stands in the text."""
        if not isinstance(value, str):
            # The sign is a matter of reading: a credit of 30.00 is -30.
            return _plain(abs(Decimal(str(value)))) in self.numbers
        words = _words(value)
        if f" {' '.join(words)} " in self._phrase or not words:
            return True
        if dates := dates_in(value):
            return bool(dates & self.dates)
        if (amount := _amount(value)) is not None:
            return bool(amount & self.numbers)
        # Lines of a scan interleave (an address beside a number), so the words of longer texts may stand apart.
        return len(words) >= _LONG and self._words.issuperset(words)

    @property
    def numbers(self) -> frozenset[Decimal]:
        """All amounts in the text, in each way a separator can be read."""
        if self._numbers is None:
            # "1 234" may be one amount or a count beside another: both stand here.
            found = [*_GROUPED.findall(self.text), *_PLAIN.findall(self.text)]
            self._numbers = frozenset(value for each in found for value in _readings(each))
        return self._numbers

    @property
    def dates(self) -> frozenset[tuple[int, int, int]]:
        """All dates in the text, in each order of day and month that is possible."""
        if self._dates is None:
            self._dates = frozenset(dates_in(self.text))
        return self._dates


_LONG: Final = 3


def ungrounded(data: object, schema: Mapping[str, Any], source: Source) -> tuple[str, object] | None:
    """The first value that does not stand in the source, with its place ("/items/0/name"); None when all do."""
    for place, value in _leaves(data, schema, ""):
        if is_placeholder(value):
            continue
        if not source.holds(value):
            return place, value
    return None


def placeholder(data: object, schema: Mapping[str, Any]) -> str | None:
    """The place of the first text that says nothing ("n/a", ""); None when there is none."""
    return next((place for place, value in _leaves(data, schema, "") if is_placeholder(value)), None)


def is_placeholder(value: object) -> bool:
    """Whether a text fills a field without saying anything."""
    return isinstance(value, str) and value.strip().casefold() in PLACEHOLDERS


def _leaves(data: object, schema: Mapping[str, Any], place: str) -> Iterator[tuple[str, str | int | float]]:
    """Texts and numbers, less those the schema itself prescribes."""
    if "enum" in schema or "const" in schema:
        return
    match data:
        case dict():
            properties = schema.get("properties")
            for key, value in data.items():
                below = properties.get(key) if isinstance(properties, dict) else None
                yield from _leaves(value, below if isinstance(below, dict) else {}, f"{place}/{key}")
        case list():
            items = schema.get("items")
            for number, value in enumerate(data):
                yield from _leaves(value, items if isinstance(items, dict) else {}, f"{place}/{number}")
        case bool():
            return
        case str() | int() | float():
            yield place or "/", data


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _plain(value: Decimal) -> Decimal:
    return value.normalize() if value.is_finite() else value


def _amount(text: str) -> frozenset[Decimal] | None:
    """The readings of a text that is one amount, its currency and sign apart; None when it is something else."""
    found = _AMOUNT.findall(text)
    rest = _AMOUNT.sub("", text)
    if len(found) != 1 or len(re.findall(r"[^\W\d]", rest)) > _LONGEST_CURRENCY:
        return None
    return frozenset(_readings(found[0]))


_LONGEST_CURRENCY: Final = 4


def _readings(text: str) -> Iterator[Decimal]:
    """1,234.50 and 1.234,50 and 1 234.50 are one amount; 1,234 is a thousand or a decimal."""
    digits = re.sub(r"[' \u00a0]", "", text)
    for grouping, point in ((",", "."), (".", ",")):
        try:
            yield _plain(Decimal(digits.replace(grouping, "").replace(point, ".")))
        except InvalidOperation:
            continue


def dates_in(text: str) -> set[tuple[int, int, int]]:
    """All dates of a text as year, month, day, in each order of day and month that is possible."""
    lowered = unicodedata.normalize("NFKC", text).casefold()
    found: set[tuple[int, int, int]] = set()
    for numeric in _DATE.findall(lowered):
        found.update(_numeric_dates(numeric))
    for day, name, year, name_first, day_after, year_after in _NAMED_DATE.findall(lowered):
        month = _MONTHS.index(name or name_first) + 1
        found.update(_checked(int(year or year_after), month, int(day or day_after)))
    return found


def whole_dates(text: str) -> set[tuple[int, int, int]]:
    """The same of a text that is nothing but a date; else none."""
    lowered = unicodedata.normalize("NFKC", text).casefold().strip()
    return dates_in(text) if _DATE.fullmatch(lowered) or _NAMED_DATE.fullmatch(lowered) else set()


def _numeric_dates(text: str) -> Iterator[tuple[int, int, int]]:
    parts = [int(part) for part in re.split(r"[-/. ]", text) if part]
    if len(parts) == 1:
        yield from _checked(int(text[:4]), int(text[4:6]), int(text[6:]))
        yield from _checked(int(text[4:]), int(text[2:4]), int(text[:2]))
        return
    if len(parts) != 3:
        return
    first, middle, last = parts
    yield from _checked(first, middle, last)
    yield from _checked(last, middle, first)
    yield from _checked(last, first, middle)


def _checked(year: int, month: int, day: int) -> Iterator[tuple[int, int, int]]:
    if year < 100:
        year += 2000 if year < 70 else 1900
    if 1900 <= year <= 2100 and 1 <= month <= 12 and 1 <= day <= 31:
        yield year, month, day
