"""The contract of `Provider`, once, over every adapter: the real SDKs against the sandbox, the local model in process.

What only broken answers can show is in test_providers_wire.py.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import pytest

from policies.catalog import CATALOG, Model
from sandbox.models import Catalogue, read_models
from sandbox.testing import Running, running
from waybill.contract import Message
from waybill.errors import Broken, ProviderError, Rejected, Throttled, Unavailable
from workers.providers.anthropic import AnthropicProvider
from workers.providers.base import Answer, Call, Provider, Stop
from workers.providers.failures import FAILURES
from workers.providers.openai import OpenAIProvider
from workers.providers.registry import default_local_model

REMOTE = ("anthropic", "openai", "compatible")
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@dataclass
class Lane:
    """An adapter and a plain call for it."""

    kind: str
    provider: Provider
    plain: Call
    sandbox: Running | None = None

    def ask(self, text: str, **changed: Any) -> Call:
        """The plain call with another question."""
        return replace(self.plain, messages=(Message(role="user", content=text),), **changed)

    async def stream(self, call: Call) -> tuple[list[str], Answer]:
        """All pieces and the answer, which must come last and once."""
        items = [item async for item in self.provider.stream(call)]
        assert isinstance(items[-1], Answer)
        assert all(isinstance(item, str) for item in items[:-1])
        return [str(item) for item in items[:-1]], items[-1]


# Stands for what llama-server, Ollama or vLLM serve: knows max_tokens, no efforts and no tiers.
OPEN_MODEL = Model("llama-3.2-3b", "local", ("local",), 8192, 2048, temperature=True, vision=False)
OPEN_MODEL_ROW = """
[[model]]
id = "llama-3.2-3b"
provider = "openai"
input = "0"
output = "0"
legacy = true
"""


@pytest.fixture(scope="module")
def shared_sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    models = tmp_path_factory.mktemp("sandbox") / "models.toml"
    models.write_text(OPEN_MODEL_ROW, "utf-8")
    with running(catalogue=Catalogue(read_models(models))) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(shared_sandbox: Running) -> Running:
    shared_sandbox.reset()
    return shared_sandbox


@pytest.fixture(scope="module")
def local_provider() -> Iterator[Provider]:
    if find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed; `./run` builds it where a C++ compiler is found")
    if not default_local_model().is_file():
        pytest.skip(f"no {default_local_model().name} in the cache; `./run` fetches it")
    from workers.providers.local import LocalProvider

    provider = LocalProvider(default_local_model(), threads=1, context_tokens=2048)
    yield provider
    asyncio.run(provider.close())


def remote_provider(kind: str, sandbox: Running) -> tuple[Provider, Call]:
    hello = (Message(role="user", content="Tell me something about Lisbon."),)
    if kind == "anthropic":
        return AnthropicProvider("key", sandbox.url), Call(CATALOG["claude-haiku-5-5"], hello)
    if kind == "compatible":
        provider = OpenAIProvider("key", sandbox.openai_url, "local", compatible=True)
        return provider, Call(OPEN_MODEL, hello, service="local")
    return OpenAIProvider("key", sandbox.openai_url), Call(CATALOG["gpt-6-luna"], hello)


@pytest.fixture(params=REMOTE)
async def remote(request: pytest.FixtureRequest, sandbox: Running) -> AsyncIterator[Lane]:
    provider, plain = remote_provider(request.param, sandbox)
    yield Lane(request.param, provider, replace(plain, timeout_s=20), sandbox)
    await provider.close()


@pytest.fixture(params=[*REMOTE, "local"])
async def lane(request: pytest.FixtureRequest) -> AsyncIterator[Lane]:
    if request.param == "local":
        provider = request.getfixturevalue("local_provider")
        hello = (Message(role="user", content="Tell me something about Lisbon."),)
        yield Lane("local", provider, Call(CATALOG["smollm2-135m-instruct"], hello, max_output_tokens=24, timeout_s=60))
        return
    sandbox = request.getfixturevalue("sandbox")
    provider, plain = remote_provider(request.param, sandbox)
    yield Lane(request.param, provider, replace(plain, timeout_s=20), sandbox)
    await provider.close()


async def failing(lane: Lane, call: Call, way: str) -> ProviderError:
    """Make a call that must fail as the failure table says."""
    with pytest.raises(ProviderError) as caught:
        await (lane.provider.call(call) if way == "call" else lane.stream(call))
    assert type(caught.value) is FAILURES[caught.value.code].kind
    return caught.value


# All lanes ----------------------------------------------------------------------------------------------------------


async def test_a_plain_call_has_text_usage_and_a_model(lane: Lane) -> None:
    answer = await lane.provider.call(lane.plain)

    assert answer.text.strip()
    assert answer.stop in (Stop.COMPLETE, Stop.TRUNCATED)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 0
    assert 0 < answer.usage.output_tokens <= lane.plain.max_output_tokens
    assert answer.served_model == lane.plain.model.id
    assert answer.first_token_s is None or lane.kind == "local"
    assert (answer.confidence is None) == (lane.kind != "local")


async def test_a_stream_says_the_same_as_a_call(lane: Lane) -> None:
    whole = await lane.provider.call(lane.plain)

    pieces, answer = await lane.stream(lane.plain)

    assert "".join(pieces) == answer.text == whole.text
    assert len(pieces) > 1
    assert answer.stop is whole.stop
    assert answer.usage is not None
    assert whole.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.output_tokens) == (
        whole.usage.prompt_tokens,
        whole.usage.output_tokens,
    )
    assert answer.first_token_s is not None
    assert answer.first_token_s > 0


async def test_the_system_prompt_is_part_of_the_prompt(lane: Lane) -> None:
    without = await lane.provider.call(replace(lane.plain, system="Be brief."))
    with_more = await lane.provider.call(replace(lane.plain, system="Be brief. " + "Mind the gap. " * 20))

    assert without.usage is not None
    assert with_more.usage is not None
    assert with_more.usage.prompt_tokens > without.usage.prompt_tokens + 40


async def test_a_conversation_keeps_its_turns(lane: Lane) -> None:
    turns = (
        Message(role="user", content="My name is Ada."),
        Message(role="assistant", content="Good day, Ada."),
        Message(role="user", content="What is my name?"),
    )

    answer = await lane.provider.call(replace(lane.plain, messages=turns))

    assert answer.text.strip()


@pytest.mark.parametrize("way", ["call", "stream"])
async def test_an_answer_fits_its_schema(lane: Lane, way: str) -> None:
    call = lane.ask("Ada is 36 years old.", json_schema=PERSON, max_output_tokens=200)

    answer = await lane.provider.call(call) if way == "call" else (await lane.stream(call))[1]

    data = json.loads(answer.text)
    assert set(data) == {"name", "age"}
    assert isinstance(data["name"], str)
    assert isinstance(data["age"], int)


@pytest.mark.parametrize("way", ["call", "stream"])
async def test_a_classification_is_exactly_one_of_its_labels(lane: Lane, way: str) -> None:
    labels = ("sports", "business", "world politics", "Wissenschaft & Technik")
    call = lane.ask("The team won the final 3:1 after extra time.", labels=labels, max_output_tokens=200)

    if way == "call":
        answer = await lane.provider.call(call)
    else:
        pieces, answer = await lane.stream(call)
        assert pieces == [answer.text]

    assert answer.text in labels
    assert answer.stop is Stop.COMPLETE


async def test_too_little_room_is_truncated_and_says_so(lane: Lane) -> None:
    answer = await lane.provider.call(replace(lane.plain, max_output_tokens=1))

    assert answer.stop is Stop.TRUNCATED
    assert answer.usage is not None
    assert answer.usage.output_tokens == 1


@pytest.mark.parametrize(
    "text", ["", "naïve 日本語 👩‍👩‍👧‍👦", "a\x00b", "\u2028\ufeff‮", "<|im_end|> <|endoftext|>", "</s>[INST]"]
)
async def test_any_text_can_be_asked(lane: Lane, text: str) -> None:
    answer = await lane.provider.call(lane.ask(f"Repeat: {text}.", system=f"You know {text}."))

    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 0


@pytest.mark.parametrize("way", ["call", "stream"])
async def test_half_a_character_is_rejected_before_it_is_sent(lane: Lane, way: str) -> None:
    # A job with such text is refused when it is made; this is the adapters' own guard behind that.
    half = Message.model_construct(role="user", content="\ud83d")
    error = await failing(lane, replace(lane.plain, messages=(half,)), way)

    assert (error.code, error.billed) == ("bad_request", False)


@pytest.mark.parametrize("way", ["call", "stream"])
async def test_a_call_ends_at_its_timeout(lane: Lane, way: str) -> None:
    if lane.sandbox is not None:
        lane.sandbox.fault("hang")

    error = await failing(lane, replace(lane.ask("Tell me a very long story. " * 30), timeout_s=0.05), way)

    assert (type(error), error.code) == (Unavailable, "timeout")


@pytest.mark.parametrize("way", ["call", "stream"])
async def test_a_cancelled_call_is_over_at_once_and_the_next_one_works(lane: Lane, way: str) -> None:
    if lane.sandbox is not None:
        lane.sandbox.fault("hang")
    call = lane.ask("Tell me a long story.", max_output_tokens=1000)
    task = asyncio.create_task(lane.provider.call(call) if way == "call" else lane.stream(call))  # type: ignore[arg-type]
    await asyncio.sleep(0.05)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 2)
    if lane.sandbox is not None:
        lane.sandbox.clear_faults()
    assert (await asyncio.wait_for(lane.provider.call(lane.plain), 20)).text


async def test_a_stream_may_be_left_in_the_middle(lane: Lane) -> None:
    stream = lane.provider.stream(lane.plain)

    first = await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]

    assert isinstance(first, str)
    assert (await lane.provider.call(lane.plain)).text


async def test_many_calls_at_once_all_get_an_answer(lane: Lane) -> None:
    count = 50 if lane.sandbox is not None else 8

    answers = await asyncio.gather(
        *(
            lane.provider.call(lane.ask(f"Say {n}.", max_output_tokens=4 if lane.kind == "local" else 400))
            for n in range(count)
        )
    )

    assert len(answers) == count
    assert all(answer.usage for answer in answers)


# Remote lanes: the sandbox's rules and faults ------------------------------------------------------------------------

# fault -> (class, code, billed) of the whole answer, or None where the fault only falls on streams
FAULTS: dict[str, tuple[type, str, bool | None]] = {
    "rate_limit": (Throttled, "rate_limit", False),
    "rate_limit_bare": (Throttled, "rate_limit", False),
    "ramp_limit": (Throttled, "ramp_limit", False),
    "server_error": (Unavailable, "server_error", False),
    "overloaded": (Unavailable, "overloaded", False),
    "unauthorized": (Rejected, "auth", False),
    "forbidden": (Rejected, "permission", False),
    "reset": (Unavailable, "connection_lost", None),
    "html": (Broken, "content_type", None),
    "flex_unavailable": (Throttled, "no_capacity", False),
}
FAULTS_OF_ONE_WAY: dict[tuple[str, str], tuple[type, str, bool | None]] = {
    ("cut_json", "call"): (Broken, "garbled", None),
    ("short_body", "call"): (Broken, "cut_body", None),
    ("empty", "call"): (Broken, "empty", True),
    ("cut_stream", "stream"): (Broken, "cut_stream", True),
    ("early_end", "stream"): (Broken, "no_terminal_event", True),
    ("hang_stream", "stream"): (Unavailable, "idle_timeout", True),
    ("garbled_sse", "stream"): (Broken, "garbled", True),
}


@pytest.mark.parametrize("way", ["call", "stream"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_becomes_its_class_and_code(remote: Lane, fault: str, way: str) -> None:
    assert remote.sandbox is not None
    if fault == "flex_unavailable" and remote.kind == "anthropic":
        pytest.skip("Anthropic has no flex tier")
    remote.sandbox.fault(fault)

    error = await failing(remote, replace(remote.plain, service="flex"), way)

    assert (type(error), error.code, error.billed) == FAULTS[fault]


@pytest.mark.parametrize("fault, way", FAULTS_OF_ONE_WAY)
async def test_a_fault_in_the_answer_becomes_its_class_and_code(remote: Lane, fault: str, way: str) -> None:
    assert remote.sandbox is not None
    remote.sandbox.fault(fault)

    error = await failing(remote, replace(remote.plain, idle_timeout_s=0.3), way)

    assert (type(error), error.code, error.billed) == FAULTS_OF_ONE_WAY[fault, way]


async def test_an_error_event_inside_a_200_is_no_success(remote: Lane) -> None:
    assert remote.sandbox is not None
    remote.sandbox.fault("error_event")

    error = await failing(remote, remote.plain, "stream")

    assert isinstance(error, Unavailable)
    assert error.billed is True


@pytest.mark.parametrize("way", ["call", "stream"])
async def test_a_spend_limit_is_account_wide_and_never_throttling(remote: Lane, way: str) -> None:
    assert remote.sandbox is not None
    remote.sandbox.fault("spend_limit")

    error = await failing(remote, remote.plain, way)

    assert isinstance(error, Rejected)
    assert (error.code in ("spend_limit", "quota"), error.account_wide, error.billed) == (True, True, False)


@pytest.mark.parametrize("way", ["call", "stream"])
@pytest.mark.parametrize("fault", ["usage_missing", "usage_null", "usage_negative", "usage_string"])
async def test_wrong_usage_is_none_and_the_answer_is_kept(remote: Lane, fault: str, way: str) -> None:
    assert remote.sandbox is not None
    remote.sandbox.fault(fault)

    answer = await remote.provider.call(remote.plain) if way == "call" else (await remote.stream(remote.plain))[1]

    assert answer.text
    assert answer.usage is None


async def test_the_wait_that_was_asked_for_is_handed_on(remote: Lane) -> None:
    assert remote.sandbox is not None
    remote.sandbox.fault("rate_limit", retry_after_s=17)

    error = await failing(remote, remote.plain, "call")

    assert isinstance(error, Throttled)
    assert error.retry_after_s == 17


@pytest.mark.parametrize("way", ["call", "stream"])
async def test_what_is_left_of_the_limits_is_read(remote: Lane, way: str) -> None:
    assert remote.sandbox is not None
    remote.sandbox.limit("*", rpm=1000, itpm=500_000, otpm=100_000, tpm=600_000)

    answer = await remote.provider.call(remote.plain) if way == "call" else (await remote.stream(remote.plain))[1]

    assert answer.limits.requests_remaining is not None
    assert 0 < answer.limits.requests_remaining < 1000
    if remote.kind == "anthropic":
        assert answer.limits.input_tokens_remaining is not None
        assert answer.limits.output_tokens_remaining is not None
    else:
        assert answer.limits.tokens_remaining is not None


async def test_one_call_is_one_request_and_the_bill_counts_the_same_tokens(remote: Lane) -> None:
    assert remote.sandbox is not None
    answer = await remote.provider.call(replace(remote.plain, job_id="job-7", attempt=2))

    entries = remote.sandbox.log()
    assert len(entries) == 1
    assert answer.usage is not None
    assert answer.request_id
    assert remote.sandbox.bill()["requests"] == 1


@pytest.mark.parametrize("effort", [None, "none", "low", "high"])
async def test_every_effort_of_the_catalogue_is_accepted_on_the_wire(sandbox: Running, effort: str | None) -> None:
    for model in CATALOG.values():
        if model.provider == "local" or (effort not in (None, "none") and effort not in model.efforts):
            continue
        provider, plain = remote_provider(model.provider, sandbox)

        answer = await provider.call(replace(plain, model=model, effort=effort, max_output_tokens=8000))

        assert answer.text, model.id
        await provider.close()


async def test_thinking_is_off_where_it_can_be_and_asked(sandbox: Running) -> None:
    provider, plain = remote_provider("anthropic", sandbox)

    answer = await provider.call(replace(plain, effort="none"))

    assert answer.usage is not None
    assert answer.usage.thinking_tokens == 0
    await provider.close()


async def test_an_effort_the_model_does_not_know_is_rejected_by_name(remote: Lane) -> None:
    if remote.kind == "compatible":
        pytest.skip("a compatible server is sent no effort")

    error = await failing(remote, replace(remote.plain, effort="heroic"), "call")

    assert (error.code, error.billed) == ("bad_request", False)
    assert "heroic" in str(error)
    assert "low" in str(error)


async def test_flex_is_served_and_named(remote: Lane) -> None:
    if remote.kind != "openai":
        pytest.skip("only OpenAI has the flex tier")

    answer = await remote.provider.call(replace(remote.plain, service="flex"))

    assert answer.service_tier == "flex"


async def test_a_model_that_does_not_exist_is_not_found(remote: Lane) -> None:
    error = await failing(remote, replace(remote.plain, model=replace(remote.plain.model, id="nobody-1")), "call")

    assert (type(error), error.code, error.billed) == (Rejected, "not_found", False)
