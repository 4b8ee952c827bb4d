"""How far two answers say the same: 1 for the same, 0 for different, between for records of which some fields are the same."""

from __future__ import annotations

from collections.abc import Iterator

from policies.evaluate.answers import normalise


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


def _leaves(data: object, place: str) -> Iterator[tuple[str, str | None]]:
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _leaves(value, f"{place}/{key}")
    elif isinstance(data, list):
        for number, value in enumerate(data):
            yield from _leaves(value, f"{place}/{number}")
    else:
        yield place, None if data is None else normalise(str(data))
