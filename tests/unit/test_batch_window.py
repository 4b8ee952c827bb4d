from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from producers.window import Slot, Window


def slots(*ids: str | None) -> list[Slot]:
    return [Slot(b"", job_id, problem=None if job_id else "bad") for job_id in ids]


@settings(deadline=None)  # the machine may be busy
@given(st.permutations(range(12)), st.sets(st.integers(0, 11)), st.integers(1, 5))
def test_rows_leave_in_input_order_whatever_the_order_of_their_ends(
    ends: list[int], invalid: set[int], count: int
) -> None:
    window = Window()
    window.add(slots(*(None if n in invalid else str(n) for n in range(12))))
    left: list[Slot] = []

    for number in ends:
        if number not in invalid:
            window.finish(str(number), "succeeded")
        while ready := window.ready(count):
            assert all(slot.is_ready for slot in ready)
            left += ready
            window.drop(len(ready))

    assert [slot.job_id for slot in left] == [None if n in invalid else str(n) for n in range(12)]
    assert not len(window)
    assert not window.waiting


def test_a_row_that_goes_on_holds_those_behind_it() -> None:
    window = Window()
    window.add(slots("a", "b"))
    window.finish("b", "failed")

    assert window.ready(10) == []
    assert [slot.job_id for slot in window.head(10)] == ["a", "b"]


async def test_the_feeder_waits_for_room_and_an_empty_window_takes_anything() -> None:
    window = Window(max_open=2, max_rows=3)
    await window.room_for(100)
    window.add(slots("a", "b"))
    waiting = asyncio.create_task(window.room_for(1))
    await asyncio.sleep(0)
    assert not waiting.done()

    window.finish("a", "succeeded")
    await waiting

    window.add(slots("c"))
    window.finish("b", "succeeded")
    window.finish("c", "succeeded")
    held = asyncio.create_task(window.room_for(1))  # three rows wait to be written
    await asyncio.sleep(0)
    assert not held.done()
    window.drop(1)
    await held
