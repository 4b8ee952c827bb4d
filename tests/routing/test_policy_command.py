"""`waybill policy`: figures come out as promised; bad input is one line and exit code 2."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from policies.evaluate.folds import split_rows
from policies.intents.classifier import Classifier
from policies.intents.phrases import own_prompts
from waybill.cli.policy import policy

Columns = dict[str, list[Any]]


def _write(path: Path, columns: Columns) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def _evaluate(train: Path, test: Path, *more: str, flagship: str = "big", pool: str = "small,tiny") -> Result:
    arguments = ["evaluate", "--train", str(train), "--test", str(test), "--flagship", flagship, "--pool", pool, *more]
    return CliRunner().invoke(policy, arguments)


def _refused(result: Result, says: str) -> None:
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert says in result.stderr


def test_evaluate_writes_figures_and_a_curve(tmp_path: Path, invented: Callable[..., Columns]) -> None:
    train, test = (_write(tmp_path / f"{seed}.parquet", invented(300, seed=seed)) for seed in (1, 2))

    result = _evaluate(
        train, test, "--target", "0.95", "--json", str(tmp_path / "o.json"), "--plot", str(tmp_path / "o.html")
    )

    assert result.exit_code == 0, result.stderr
    figures = json.loads((tmp_path / "o.json").read_text())
    assert {"quality_ratio", "saving", "shares", "baselines"} <= figures.keys()
    assert "apgr" not in figures
    assert "<svg" in (tmp_path / "o.html").read_text()
    assert "static table" in result.stdout


def test_a_pair_has_routellm_measures_and_untagged_data_is_enough(
    tmp_path: Path, invented: Callable[..., Columns]
) -> None:
    train, test = (_write(tmp_path / f"{seed}.parquet", invented(200, seed=seed, answers=False)) for seed in (1, 2))

    result = _evaluate(train, test, "--no-intent", "--json", str(tmp_path / "o.json"), pool="small")

    assert result.exit_code == 0, result.stderr
    figures = json.loads((tmp_path / "o.json").read_text())
    assert {"apgr", "cpt50", "cpt80"} <= figures.keys()
    assert figures["by_intent"] == {}


def test_a_further_column_is_reported_and_ignored(tmp_path: Path, invented: Callable[..., Columns]) -> None:
    columns = invented(100)
    train = _write(tmp_path / "a.parquet", {**columns, "mood": ["fine"] * len(columns["model"])})

    result = _evaluate(train, train)

    assert result.exit_code == 0
    assert "a.parquet: unknown columns ignored: mood" in result.stderr


def test_bad_input_is_one_line(tmp_path: Path, invented: Callable[..., Columns]) -> None:
    good = _write(tmp_path / "good.parquet", invented(60))
    columns = invented(60)
    renamed = _write(tmp_path / "renamed.parquet", {("grade" if k == "score" else k): v for k, v in columns.items()})
    same = _write(tmp_path / "same.parquet", {**columns, "score": [1.0] * 180})
    unlabelled = _write(tmp_path / "none.parquet", {**columns, "score": pa.nulls(180, pa.float64())})
    few = _write(tmp_path / "few.parquet", invented(10))
    text = tmp_path / "text.parquet"
    text.write_text("item_id,score")
    nothing = _write(
        tmp_path / "nothing.parquet",
        {**columns, "score": [0.0 if model == "big" else 1.0 for model in columns["model"]]},
    )
    alike = _write(tmp_path / "alike.parquet", {**columns, "prompt": ["the same"] * 180})

    _refused(_evaluate(renamed, good), "renamed.parquet: missing columns: score; unknown columns: grade")
    _refused(_evaluate(good, good, flagship="huge"), "good.parquet: flagship huge has no outcomes")
    _refused(_evaluate(good, good, pool="small,absent"), "good.parquet: model absent has no outcomes")
    _refused(_evaluate(same, good), "same.parquet: every score is 1 (one class only)")
    _refused(_evaluate(unlabelled, good), "none.parquet: flagship big has no labels")
    _refused(_evaluate(few, good), "few.parquet: 10 labelled items cannot show 0.99")
    _refused(_evaluate(good, nothing), "nothing.parquet: flagship big scores 0 on every item")
    _refused(_evaluate(alike, good), "alike.parquet: only 1 different prompts among 60 items")
    _refused(_evaluate(text, good), "text.parquet is not a readable Parquet file")
    _refused(_evaluate(good, good, "--target", "99"), "--target 99 is not a share")
    _refused(_evaluate(good, good, "--plot", str(tmp_path / "o.pdf")), "o.pdf")
    _refused(_evaluate(good, good, "--target", "1.4"), "is out of reach")
    _refused(_evaluate(good, good, "--json", str(tmp_path / "absent" / "o.json")), "cannot write")


def test_one_item_is_measured_without_an_error_bar(tmp_path: Path, invented: Callable[..., Columns]) -> None:
    train = _write(tmp_path / "a.parquet", invented(100))
    one = _write(tmp_path / "b.parquet", {name: values[:3] for name, values in invented(1).items()})

    result = _evaluate(train, one, "--json", str(tmp_path / "o.json"))

    assert result.exit_code == 0, result.stderr
    figures = json.loads((tmp_path / "o.json").read_text())
    assert (figures["test_items"], figures["quality_standard_error"]) == (1, None)


def test_intents_writes_figures_and_a_model(tmp_path: Path) -> None:
    pairs = own_prompts()
    train, test = (
        _write(
            tmp_path / f"{start}.parquet",
            {"prompt": [p for p, _ in pairs[start::2]], "intent": [i for _, i in pairs[start::2]]},
        )
        for start in (0, 1)
    )

    result = CliRunner().invoke(
        policy,
        [
            "intents",
            "--train",
            str(train),
            "--test",
            str(test),
            "--json",
            str(tmp_path / "o.json"),
            "--model",
            str(tmp_path / "m"),
        ],
    )

    assert result.exit_code == 0, result.stderr
    figures = json.loads((tmp_path / "o.json").read_text())
    assert {"accuracy", "macro_f1", "accuracy_at_80_coverage", "ms_per_prompt"} <= figures.keys()
    assert (tmp_path / "m").stat().st_size < 1_000_000


def test_intents_refuses_one_class(tmp_path: Path) -> None:
    one = _write(tmp_path / "one.parquet", {"prompt": ["a"] * 20, "intent": ["x"] * 20})

    _refused(CliRunner().invoke(policy, ["intents", "--train", str(one), "--test", str(one)]), "one class only (x)")


def test_the_shipped_model_is_what_the_command_trains(tmp_path: Path) -> None:
    result = CliRunner().invoke(policy, ["train-intents", str(tmp_path / "m.npz")])

    assert result.exit_code == 0, result.stderr
    shipped = Path(__file__).resolve().parents[2] / "policies" / "intents" / "model.npz"
    ours, again = (Classifier.from_bytes(path.read_bytes()) for path in (shipped, tmp_path / "m.npz"))
    assert ours.labels == again.labels
    assert ours.threshold == pytest.approx(again.threshold, abs=0.01)
    for prompt, _ in own_prompts():
        assert ours.guess(prompt).confidence == pytest.approx(again.guess(prompt).confidence, abs=0.01)


@pytest.mark.parametrize("flagship", ["gpt-4o-2024-08-06", "claude-3-5-sonnet-20241022"])
def test_recorded_outcomes_keep_quality_and_save(
    tmp_path: Path, recorded: Callable[[str], Path], flagship: str
) -> None:
    table = pq.read_table(recorded("outcomes/zeroeval.parquet"))
    halves = split_rows(table["prompt"].to_pylist(), share=0.5, seed=11)
    paths = []
    for number, rows in enumerate(halves):
        paths.append(tmp_path / f"{number}.parquet")
        pq.write_table(table.take(rows), paths[-1])

    result = _evaluate(
        *paths,
        "--json",
        str(tmp_path / "o.json"),
        flagship=flagship,
        pool="gpt-4o-mini-2024-07-18,Meta-Llama-3.1-8B-Instruct",
    )

    assert result.exit_code == 0, result.stderr
    figures = json.loads((tmp_path / "o.json").read_text())
    assert figures["quality_ratio"] > 0.97
    assert figures["saving"] < figures["baselines"]["oracle"]["saving"]


def test_unseen_templates_are_told_apart(tmp_path: Path, recorded: Callable[[str], Path]) -> None:
    table = pq.read_table(recorded("intents-t0.parquet"))
    templates = table["template"].to_pylist()
    halves = split_rows(templates, share=0.75, seed=5)
    paths = []
    for number, rows in enumerate(halves):
        paths.append(tmp_path / f"{number}.parquet")
        pq.write_table(table.take(rows), paths[-1])

    result = CliRunner().invoke(
        policy, ["intents", "--train", str(paths[0]), "--test", str(paths[1]), "--json", str(tmp_path / "o.json")]
    )

    assert result.exit_code == 0, result.stderr
    figures = json.loads((tmp_path / "o.json").read_text())
    assert figures["accuracy"] >= 0.80
    assert figures["macro_f1"] >= 0.70
    assert figures["accuracy_at_80_coverage"] >= 0.90
