"""A real fleet learns a cascade from its own ledger and plays it, call by call as it was measured."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import anthropic
import openai
import pytest

from policies.cascading import LearnedCascade
from policies.evaluate.outcomes import Outcomes
from policies.evaluate.packing import unpack
from producers.fitting import fit
from sandbox.testing import spawned
from tests.fleet import redis_database, running_fleet
from tests.quality.cascades import HAIKU, INTENT, OPUS, POLICY, SONNET, invent
from tests.quality.ledgerrows import LedgerRows
from tests.quality.place import Place
from tests.quality.test_cascading import path
from waybill import Client, Job, embedded

pytestmark = pytest.mark.timeout(900)  # eight commands, each a Python of its own, on a machine that may be busy
LEARNED, ASKED, BY_GATEWAY = 90, 30, 16
ROOMY = "*:rpm=1000000,itpm=1000000000,otpm=1000000000,tpm=1000000000"


@dataclass(frozen=True, kw_only=True)
class RunningPlace(Place):
    """The same, with jobs to be run, and a gateway."""

    gateway_url: str

    def run(self, jobs: list[Job]) -> list[str]:
        """Have jobs done; their ids in order."""
        ids = self.client.submit_many(jobs)
        failed = [outcome for outcome in self.client.results(ids, timeout_s=300) if outcome.result is None]
        assert not failed, failed[0]
        return ids


@pytest.fixture(scope="module")
def outcomes() -> tuple[Outcomes, Outcomes, Outcomes]:
    return invent(LEARNED, seed=1), invent(ASKED, seed=2), invent(BY_GATEWAY, seed=4)


@pytest.fixture(scope="module")
def place(
    services: embedded.Services,
    ledger_template: str,
    outcomes: tuple[Outcomes, Outcomes, Outcomes],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RunningPlace]:
    """A fleet in which the flagship has answered what is to be learned from."""
    folder = tmp_path_factory.mktemp("cascade")
    # An audit is a call of the flagship more; which jobs are drawn is decided by their ids.
    (folder / "policy.toml").write_text(POLICY + "[audits]\nshare = 0\n")
    with (folder / "book.jsonl").open("w") as book:
        for each in outcomes:
            for prompt, answers in zip(each.prompts, each.answers, strict=True):
                for model, answer in zip(each.models, answers, strict=True):
                    book.write(json.dumps({"match": prompt, "model": model, "answer": answer}) + "\n")
    database_url = embedded.create_database(str(services.database_url), "cascade", template=ledger_template)
    redis_url = redis_database(services, "cascade")
    policy = {"WAYBILL_POLICY_FILE": str(folder / "policy.toml")}
    env = {"WAYBILL_DATABASE_URL": database_url, "WAYBILL_REDIS_URL": redis_url, **policy}
    with (
        spawned("--answers", str(folder / "book.jsonl"), "--latency", "fixed:2ms", "--limit", ROOMY) as sandbox,
        running_fleet(database_url, redis_url, sandbox.url, folder, gateway=True, env=policy) as fleet,
        Client(database_url, redis_url) as client,
        LedgerRows(database_url) as ledger,
    ):
        found = RunningPlace(env, client, sandbox, ledger, folder, gateway_url=fleet.gateway_url)
        found.run([_job(prompt, model=OPUS) for prompt in outcomes[0].prompts])
        yield found


def _job(prompt: str, model: str | None = None) -> Job:
    return Job(intent=INTENT, prompt=prompt, priority="lo", model=model)


def test_a_cascade_is_fitted_on_the_ledger_and_played_as_it_was_measured(
    place: RunningPlace, outcomes: tuple[Outcomes, Outcomes, Outcomes]
) -> None:
    too_early = place.waybill("policy", "fit", "--intent", INTENT)
    for model in (HAIKU, SONNET):
        shadowed = place.waybill(
            "policy", "shadow", "--intent", INTENT, "--model", model, "--sample", "500", "--budget", "9"
        )
        assert shadowed.returncode == 0, shadowed.stderr
    unreachable = place.waybill("policy", "fit", "--intent", INTENT, "--target", "1")
    done = place.waybill("policy", "fit", "--intent", INTENT, "--target", "0.8")

    assert (too_early.returncode, unreachable.returncode) == (2, 2)
    assert "is graded beside claude-opus-5-5" in too_early.stderr
    assert "nothing was put in force" in unreachable.stderr
    assert done.returncode == 0, done.stderr
    assert f"{HAIKU} > {SONNET} > {OPUS}; {LEARNED} items" in done.stdout
    [(number, content, tenants)] = place.ledger.all("select id, model, tenants from cascades where ended_at is null")
    assert tenants == ["default"]
    shown = place.waybill("policy", "outcomes")
    assert f"cascade {number} of {INTENT}" in shown.stdout
    _until_in_force(place, number)

    ids = place.run([_job(prompt) for prompt in outcomes[1].prompts])

    learned = LearnedCascade(number, INTENT, 0.8, unpack(content))
    expected = [[outcomes[1].models[at] for at in path(learned, outcomes[1], item)] for item in range(ASKED)]
    called = dict(
        place.ledger.all("select job_id::text, array_agg(model order by number) from attempts group by job_id")
    )
    assert [called[job_id] for job_id in ids] == expected
    assert len({tuple(models) for models in expected}) >= 2
    log = [line for line in place.sandbox.log() if line.get("job") in ids and line["status"] == 200]
    assert len(log) == sum(map(len, expected))
    details = place.ledger.all("select detail from decisions where outcome = 'route' and job_id = any(%s::uuid[])", ids)
    assert all((detail["plan"], detail["cascade"]) == ("learned", number) for (detail,) in details)
    escalated = next(job_id for job_id, models in zip(ids, expected, strict=True) if len(models) > 1)
    assert f"cascade {number} does not settle for it" in place.waybill("why", escalated).stdout

    [strict] = place.run([Job(intent=INTENT, prompt=outcomes[1].prompts[0], quality=0.9)])

    [(detail,)] = place.ledger.all("select detail from decisions where outcome = 'route' and job_id = %s", strict)
    assert "cascade" not in detail  # it was fitted for 0.8
    assert "quality 0.9" in place.waybill("why", strict).stdout


def test_a_client_that_only_changed_its_base_url_gets_what_the_cascade_chooses(
    place: RunningPlace, outcomes: tuple[Outcomes, Outcomes, Outcomes]
) -> None:
    fitted = fit(invent(300, seed=3), target=0.95, seed=0, name="made")
    place.ledger.all("update cascades set ended_at = now() where ended_at is null")
    [(number,)] = place.ledger.all(
        "insert into cascades (intent, chain, target, labels, quality, saving, source, model)"
        " values (%s, %s, 0.95, 300, 0.95, 0.5, 'test', %s) returning id",
        INTENT, list(fitted.chain), fitted.content,
    )  # fmt: skip
    _until_in_force(place, number)
    asked, learned = outcomes[2], LearnedCascade(number, INTENT, 0.95, unpack(fitted.content))
    ids, said = [], []
    with (
        openai.OpenAI(base_url=f"{place.gateway_url}/v1", api_key="any", max_retries=0, timeout=60) as gpt,
        anthropic.Anthropic(base_url=place.gateway_url, api_key="any", max_retries=0, timeout=60) as claude,
    ):
        intent = {"x-waybill-intent": INTENT}
        for item, prompt in enumerate(asked.prompts):
            turns: Any = [{"role": "user", "content": prompt}]
            if item % 2:
                raw: Any = gpt.chat.completions.with_raw_response.create(
                    model="auto", messages=turns, extra_headers=intent
                )
                said.append(raw.parse().choices[0].message.content)
            else:
                raw = claude.messages.with_raw_response.create(
                    model="auto", max_tokens=4000, messages=turns, extra_headers=intent
                )
                said.append(raw.parse().content[-1].text)
            ids.append(raw.headers["x-waybill-job"])
        streamed = gpt.chat.completions.with_raw_response.create(
            model="auto", messages=[{"role": "user", "content": asked.prompts[0]}], stream=True, extra_headers=intent
        )
        list(streamed.parse())

    paths = [path(learned, asked, item) for item in range(BY_GATEWAY)]
    called = dict(
        place.ledger.all("select job_id::text, array_agg(model order by number) from attempts group by job_id")
    )
    assert [called[job_id] for job_id in ids] == [[asked.models[at] for at in calls] for calls in paths]
    assert said == [asked.answers[item][calls[-1]] for item, calls in enumerate(paths)]
    assert len({len(calls) for calls in paths}) >= 2
    # What has been streamed cannot be taken back: the plan answers.
    [(detail,)] = place.ledger.all(
        "select detail from decisions where outcome = 'route' and job_id = %s", streamed.headers["x-waybill-job"]
    )
    assert "cascade" not in detail


def test_a_cascade_that_was_ended_decides_no_more_and_one_from_a_file_takes_its_place(
    place: RunningPlace, outcomes: tuple[Outcomes, Outcomes, Outcomes]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    many = invent(300, seed=3)
    rows = [
        {"item_id": many.items[i], "intent": "x", "prompt": many.prompts[i], "model": f"old-{model}",
         "score": many.scores[i, at], "cost_usd": many.costs[i, at], "answer": many.answers[i][at]}
        for i in range(len(many)) for at, model in enumerate(many.models)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), place.folder / "made.parquet")
    names = [part for model in many.models for part in ("--model", f"old-{model}={model}")]

    done = place.waybill("policy", "fit", "--intent", INTENT, "--from", "made.parquet", "--target", "0.95", *names)
    off = place.waybill("policy", "fit", "--intent", INTENT, "--off")
    again = place.waybill("policy", "fit", "--intent", INTENT, "--off")

    assert done.returncode == 0, done.stderr
    assert "300 items" in done.stdout
    assert place.ledger.all("select count(*) from cascades where ended_at is null") == [(0,)]
    assert off.returncode == 0, off.stderr
    assert again.returncode == 2
    assert f"no cascade of {INTENT} is in force" in again.stderr


def _until_in_force(place: RunningPlace, number: int) -> None:
    """Wait until the dispatcher begins jobs with this cascade; probes are jobs of no interest."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        [job_id] = place.run([_job(f"probe {time.monotonic_ns()}")])
        [(detail,)] = place.ledger.all("select detail from decisions where outcome = 'route' and job_id = %s", job_id)
        if detail.get("cascade") == number:
            return
        time.sleep(0.5)
    raise AssertionError("the cascade never came in force")
