"""How far two answers say the same: 1 for the same, 0 for different, between for records of which some fields are the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from policies.evaluate.answers import NOTHING, normalise
from policies.grounding import whole_dates


def agreement(first: object, second: object) -> float | None:
    """The share of fields that are the same in normal form (14 = "14.00", "(b)" = "B.").

    Args:
        first, second: Parsed data, labels or texts.

    Returns:
        None for two free texts that differ: whether they say the same only a reader can tell.
    """
    if isinstance(first, dict | list) and isinstance(second, dict | list):
        one, other = dict(_leaves(first, "")), dict(_leaves(second, ""))
        places = one.keys() | other.keys()
        return sum(one.get(place) == other.get(place) for place in places) / len(places) if places else 1.0
    one_form, other_form = normalise(str(first)), normalise(str(second))
    if one_form == other_form:
        return 1.0
    is_text = any((form or "t:").startswith("t:") for form in (one_form, other_form))
    return None if is_text and isinstance(first, str) and isinstance(second, str) else 0.0


def value_forms(record: Mapping[str, object]) -> dict[str, str]:
    """The normal form of each value of a flat record; of one that says nothing (null, "n/a") there is none, as of one left out.

    A date is the same however it is written, as long as one cannot be read in two ways and the other in one.
    """
    forms = {name: _form(value) for name, value in record.items()}
    return {name: form for name, form in forms.items() if form != NOTHING}


def same_values(first: Mapping[str, str], second: Mapping[str, str], fields: int) -> float:
    """The share of the record's fields that are the same, by the normal forms (or what stands for them) of both."""
    names = first.keys() | second.keys()
    return 1 - sum(first.get(name) != second.get(name) for name in names) / max(fields, len(names), 1)


def _form(value: object) -> str:
    if isinstance(value, str) and (dates := whole_dates(value)):
        return "d:" + ",".join(f"{year:04}-{month:02}-{day:02}" for year, month, day in sorted(dates))
    return NOTHING if value is None else normalise(str(value)) or NOTHING


def _leaves(data: object, place: str) -> Iterator[tuple[str, str | None]]:
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _leaves(value, f"{place}/{key}")
    elif isinstance(data, list):
        for number, value in enumerate(data):
            yield from _leaves(value, f"{place}/{number}")
    else:
        yield place, None if data is None else normalise(str(data))
