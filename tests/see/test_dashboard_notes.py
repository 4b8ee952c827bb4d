"""What the dashboard writes down between two looks: one note for an outage, however often it is probed."""

from __future__ import annotations

from typing import Any

from producers.dashboard.watch import NOTES, Watch


def seen(watch: Watch, *states: str) -> list[dict[str, Any]]:
    for state in states:
        lane = {"lane": "anthropic/m/interactive", "state": state, "reason": "529"}
        watch._note_changes({"lanes": [lane], "redis": None, "ledger": None})
    return list(watch._notes)


def watch() -> Watch:
    nothing: Any = None
    return Watch(nothing, nothing, nothing)


def test_an_outage_is_one_note_that_counts_its_probes() -> None:
    [note] = seen(watch(), "closed", *["open", "half_open"] * NOTES, "open")

    assert (note["before"], note["state"], note["probes"]) == ("closed", "open", NOTES)
    assert note["probed_at"] >= note["at"]


def test_the_way_back_and_the_next_outage_are_notes_of_their_own() -> None:
    notes = seen(watch(), "open", "half_open", "open", "half_open", "recovering", "closed", "open")

    assert [(note["before"], note["state"]) for note in reversed(notes)] == [
        ("closed", "open"),
        ("half_open", "recovering"),
        ("recovering", "closed"),
        ("closed", "open"),
    ]
    assert [note["probes"] for note in reversed(notes)] == [1, 0, 0, 0]


def test_a_lane_that_is_probed_already_when_somebody_looks_has_been_open() -> None:
    [note] = seen(watch(), "closed", "half_open", "open", "half_open", "open")

    assert (note["before"], note["state"], note["probes"]) == ("closed", "open", 2)


def test_services_are_told_apart_from_lanes() -> None:
    looking = watch()
    for redis in (None, "gone", None):
        looking._note_changes({"lanes": [], "redis": redis, "ledger": None})

    assert [(note["what"], note["state"]) for note in looking._notes] == [("Redis", "there"), ("Redis", "away")]


def test_what_is_not_known_while_redis_is_away_is_no_change() -> None:
    looking = watch()
    notes = seen(looking, "open", "unknown", "unknown", "open")

    assert [(note["before"], note["state"], note["probes"]) for note in notes] == [("closed", "open", 0)]
