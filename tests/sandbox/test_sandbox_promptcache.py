"""The prompt cache: what is written, when it can be read, how long it lasts, and that the parts add up."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from sandbox.promptcache import Block, Plan, PromptCache

MINUTE_NS = 60_000_000_000


def blocks(*sizes: int, marks: dict[int, int] | None = None, prefix: str = "b") -> list[Block]:
    return [Block(f"{prefix}{n}".encode(), size, (marks or {}).get(n)) for n, size in enumerate(sizes)]


def send(cache: PromptCache, given: list[Block], now_ns: int = 0, minimum: int = 100) -> Plan:
    plan = cache.plan_blocks("a/m", given, minimum=minimum, now_ns=now_ns)
    cache.commit(plan, now_ns)
    cache.begin(plan)
    return plan


def test_the_first_request_writes_and_the_second_reads() -> None:
    cache = PromptCache()
    prompt = blocks(500, 20, marks={0: 300})

    first, second = send(cache, prompt), send(cache, prompt)

    assert (first.read_tokens, first.write_short_tokens) == (0, 500)
    assert (second.read_tokens, second.write_short_tokens) == (500, 0)


def test_a_prefix_below_the_minimum_is_not_cached() -> None:
    cache = PromptCache()
    prompt = blocks(99, marks={0: 300})

    first, second = send(cache, prompt), send(cache, prompt)

    assert first == second == Plan()


def test_without_breakpoints_nothing_is_cached() -> None:
    assert send(PromptCache(), blocks(5000)) == Plan()


def test_side_by_side_requests_all_miss_until_the_first_answer_begins() -> None:
    cache = PromptCache()
    prompt = blocks(500, marks={0: 300})

    first = cache.plan_blocks("a/m", prompt, minimum=100, now_ns=0)
    cache.commit(first, 0)
    second = cache.plan_blocks("a/m", prompt, minimum=100, now_ns=1)
    cache.begin(first)
    third = cache.plan_blocks("a/m", prompt, minimum=100, now_ns=2)

    assert second.write_short_tokens == 500
    assert third.read_tokens == 500


def test_a_read_refreshes_the_five_minutes() -> None:
    cache = PromptCache()
    prompt = blocks(500, marks={0: 300})
    send(cache, prompt, 0)

    refreshed = send(cache, prompt, 4 * MINUTE_NS)
    kept = send(cache, prompt, 8 * MINUTE_NS)
    lost = send(cache, prompt, 13 * MINUTE_NS)

    assert (refreshed.read_tokens, kept.read_tokens) == (500, 500)
    assert (lost.read_tokens, lost.write_short_tokens) == (0, 500)


def test_an_hour_and_five_minutes_are_counted_apart() -> None:
    cache = PromptCache()

    plan = send(cache, blocks(500, 300, 50, marks={0: 3600, 1: 300}))

    assert (plan.write_long_tokens, plan.write_short_tokens) == (500, 300)


def test_a_changed_block_misses_from_there_on() -> None:
    cache = PromptCache()
    send(cache, [Block(b"tools", 200, 300), Block(b"system", 300, 300)])

    plan = send(cache, [Block(b"tools", 200, 300), Block(b"other!", 400, 300)])

    assert (plan.read_tokens, plan.write_short_tokens) == (200, 400)


def test_an_entry_is_found_up_to_twenty_blocks_back() -> None:
    cache = PromptCache()
    sizes = [200] + [10] * 25
    send(cache, blocks(*sizes[:2], marks={1: 300}))

    near = cache.plan_blocks("a/m", blocks(*sizes[:21], marks={20: 300}), minimum=100, now_ns=0)
    far = cache.plan_blocks("a/m", blocks(*sizes[:24], marks={23: 300}), minimum=100, now_ns=0)

    assert near.read_tokens == 210
    assert far.read_tokens == 0


def test_other_accounts_and_models_share_nothing() -> None:
    cache = PromptCache()
    prompt = blocks(500, marks={0: 300})
    send(cache, prompt)

    assert cache.plan_blocks("b/m", prompt, minimum=100, now_ns=0).read_tokens == 0


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 2), st.sampled_from([None, 300, 3600])), min_size=1, max_size=8),
        max_size=12,
    )
)
def test_reads_and_writes_never_exceed_the_prompt_and_nothing_is_read_that_was_not_written(
    requests: list[list[tuple[int, int | None]]],
) -> None:
    cache = PromptCache()
    written: set[tuple[int, ...]] = set()

    for request in requests:
        contents = tuple(content for content, _ in request)
        prompt = [Block(bytes([content]), 100, ttl_s) for content, ttl_s in request]
        plan = send(cache, prompt, minimum=150)
        read = plan.read_tokens // 100

        assert plan.read_tokens + plan.write_short_tokens + plan.write_long_tokens <= 100 * len(request)
        assert read == 0 or contents[:read] in written
        written |= {contents[: n + 1] for n, (_, ttl_s) in enumerate(request) if ttl_s and n >= 1}


def stream(
    cache: PromptCache,
    prompt: bytes,
    *,
    implicit: bool = True,
    breakpoints: Sequence[tuple[int, int]] = (),
    charged: bool = True,
) -> Plan:
    plan = cache.plan_stream(
        "a/m",
        prompt,
        bytes_per_token=4.0,
        minimum=1024,
        now_ns=0,
        ttl_s=1800,
        implicit=implicit,
        breakpoints=breakpoints,
        charged=charged,
    )
    cache.commit(plan, 0)
    cache.begin(plan)
    return plan


def test_openai_caches_from_1024_tokens_in_steps_of_128() -> None:
    cache = PromptCache()

    short = stream(cache, b"x" * (1023 * 4))
    first = stream(cache, b"y" * (1300 * 4))
    second = stream(cache, b"y" * (1300 * 4))

    assert short == Plan()
    assert first.write_short_tokens == 1280
    assert (second.read_tokens, second.write_short_tokens) == (1280, 0)


def test_openai_reads_the_longest_common_prefix_and_writes_the_rest() -> None:
    cache = PromptCache()
    stream(cache, b"s" * (1100 * 4) + b"a" * (400 * 4))

    plan = stream(cache, b"s" * (1100 * 4) + b"b" * (400 * 4))

    assert (plan.read_tokens, plan.write_short_tokens) == (1024, 1408 - 1024)


def test_explicit_mode_without_breakpoints_neither_reads_nor_writes() -> None:
    cache = PromptCache()
    stream(cache, b"y" * 8000)

    assert stream(cache, b"y" * 8000, implicit=False) == Plan()


def test_an_explicit_breakpoint_is_not_rounded_to_a_step() -> None:
    cache = PromptCache()
    prompt = b"y" * (1101 * 4)

    first = stream(cache, prompt, implicit=False, breakpoints=[(1101 * 4, 43_200)])
    second = stream(cache, prompt, implicit=False, breakpoints=[(1101 * 4, 43_200)])

    assert (first.write_long_tokens, first.write_short_tokens) == (1101, 0)
    assert second.read_tokens == 1101


def test_models_with_free_writes_show_none() -> None:
    cache = PromptCache()

    first = stream(cache, b"y" * 8000, charged=False)
    second = stream(cache, b"y" * 8000, charged=False)

    assert first.write_short_tokens == 0
    assert second.read_tokens == 1920
