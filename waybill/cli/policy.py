"""`waybill policy`: measure a router on recorded outcomes, and the intent classifier on prompts; more verbs in outcomes.py, fit.py.

Reads and writes the files and prints; every figure is made in `policies/evaluate` and `policies/intents`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from waybill.cli.fit import fit
from waybill.cli.outcomes import import_, outcomes, replay, shadow

if TYPE_CHECKING:
    from policies.evaluate.baselines import Measured
    from policies.evaluate.report import Report
    from policies.intents.measure import IntentReport

_EXISTING = click.Path(exists=True, dir_okay=False, path_type=Path)
_NEW = click.Path(dir_okay=False, path_type=Path)


class BadInput(click.ClickException):
    """One line on stderr, exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(f"waybill policy: {self.format_message()}", err=True, file=file)


@click.group()
def policy() -> None:
    """Check and measure routing policies."""


@policy.command()
@click.option("--train", "train_path", required=True, type=_EXISTING, help="Outcomes to fit on (Parquet, long format).")
@click.option(
    "--test", "test_path", required=True, type=_EXISTING, help="Outcomes to measure on; their scores fit nothing."
)
@click.option("--flagship", required=True, help="The model all others are measured against.")
@click.option("--pool", required=True, help="Models beside the flagship, separated by commas.")
@click.option("--target", default=0.99, show_default=True, type=float, help="Share of the flagship's quality to keep.")
@click.option("--no-intent", is_flag=True, help="Hide the intent tag.")
@click.option(
    "--as-chain", is_flag=True, help="Ask the pool in this order and keep the last answer: what the fleet does."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of folds and trees.")
@click.option("--json", "json_path", type=_NEW, help="Write all figures here.")
@click.option("--plot", "plot_path", type=_NEW, help="Write the cost-quality curve here (.html or .svg).")
def evaluate(
    *,
    train_path: Path,
    test_path: Path,
    flagship: str,
    pool: str,
    target: float,
    no_intent: bool,
    as_chain: bool,
    seed: int,
    json_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Fit a policy on one set of recorded outcomes and measure it on another.

    Per item it chooses the flagship, a cheap model or a cascade of calls, all of them paid for; an answer is read only after its
    call was paid for. Prints quality and saving against the flagship beside the plain ways to choose.
    """
    from policies.evaluate.outcomes import BadOutcomes, pair_outcomes, unknown_columns
    from policies.evaluate.report import describe_lacking
    from policies.evaluate.report import evaluate as run

    if not 0 < target < 2:
        raise BadInput(f"--target {target:g} is not a share of the flagship's quality; write something like 0.99")
    draw = _drawer(plot_path)
    _check_folders(json_path, plot_path)
    names = [name.strip() for name in pool.split(",") if name.strip()]
    try:
        columns = {path: read_columns(path) for path in (train_path, test_path)}
        train, test = (
            pair_outcomes(columns[path], flagship=flagship.strip(), pool=names, name=path.name, tagged=not no_intent)
            for path in (train_path, test_path)
        )
        report = run(
            train, test, target=target, seed=seed, name=train_path.name, test_name=test_path.name, as_chain=as_chain
        )
    except BadOutcomes as exc:
        raise BadInput(str(exc)) from None
    for path, paired in ((train_path, train), (test_path, test)):
        if ignored := unknown_columns(columns[path]):
            click.echo(f"{path.name}: unknown columns ignored: {', '.join(ignored)}", err=True)
        if paired.left_out:
            click.echo(f"{path.name}: {paired.left_out} items left out, some model has no outcome there", err=True)
    _print_report(report, flagship=flagship)
    if report.lacking:
        click.echo(describe_lacking(report.lacking, target), err=True)
    if json_path:
        _write(json_path, json.dumps(_report_dict(report), indent=2, allow_nan=False) + "\n")
    if plot_path and draw:
        draw(plot_path, report, f"{flagship} against {', '.join(names)}")


@policy.command()
@click.option(
    "--train", "train_path", required=True, type=_EXISTING, help="Prompts with intents to learn from (Parquet)."
)
@click.option("--test", "test_path", required=True, type=_EXISTING, help="Prompts with intents to measure on.")
@click.option("--json", "json_path", type=_NEW, help="Write all figures here.")
@click.option("--model", "model_path", type=_NEW, help="Write the classifier fitted on --train here.")
def intents(*, train_path: Path, test_path: Path, json_path: Path | None, model_path: Path | None) -> None:
    """Fit the intent classifier on one set of prompts and measure it on another.

    Split by template or by data set to see how it does on producers it never met; a random split flatters.
    """
    import time

    from policies.intents.classifier import fit_classifier
    from policies.intents.measure import BadIntents, check_labels, measure_intents

    _check_folders(json_path, model_path)
    columns = {path: read_columns(path) for path in (train_path, test_path)}
    try:
        learned = check_labels(columns[train_path], name=train_path.name, to_learn=True)
        asked = check_labels(columns[test_path], name=test_path.name, to_learn=False)
    except BadIntents as exc:
        raise BadInput(str(exc)) from None
    classifier = fit_classifier(learned.prompts, learned.intents, groups=learned.groups, producers=learned.producers)
    started = time.process_time()
    guesses = [classifier.guess(prompt) for prompt in asked.prompts]
    ms = 1_000 * (time.process_time() - started) / len(guesses)
    report = measure_intents(asked.intents, guesses, ms_per_prompt=ms)
    _print_intents(report)
    if json_path:
        _write(json_path, json.dumps(report.as_dict(), indent=2, allow_nan=False) + "\n")
    if model_path:
        _write_bytes(model_path, classifier.to_bytes())


@policy.command("train-intents")
@click.argument("model_path", type=_NEW)
def train_intents(*, model_path: Path) -> None:
    """Train the shipped intent classifier again, from our own prompts only, and write it to MODEL_PATH."""
    from policies.intents.classifier import fit_classifier
    from policies.intents.phrases import own_prompts

    pairs = own_prompts()
    classifier = fit_classifier([prompt for prompt, _ in pairs], [intent for _, intent in pairs], with_own=False)
    _write_bytes(model_path, classifier.to_bytes())
    click.echo(f"{model_path}: {len(pairs)} prompts, {len(classifier.labels)} intents")


for _verb in (outcomes, import_, replay, shadow, fit):
    policy.add_command(_verb)


def read_columns(path: Path) -> dict[str, list[Any]]:
    """All columns of a Parquet file.

    Raises:
        BadInput: It is none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as exc:
        reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        raise BadInput(f"{path.name} is not a readable Parquet file ({reason[:120]})") from None
    columns: dict[str, list[Any]] = table.to_pydict()
    return columns


def renames(pairs: Sequence[str], present: Sequence[object], name: str) -> dict[str, str]:
    """What `--model OLD=NEW` says.

    Args:
        present: The models that the file has outcomes of.
        name: The file's name.

    Raises:
        BadInput: A pair is none, or names a model that is not there.
    """
    names: dict[str, str] = {}
    for pair in pairs:
        old, is_pair, new = pair.partition("=")
        if not (old and is_pair and new):
            raise BadInput(f"--model {pair}: write OLD=NEW, such as gpt-4o-2024-08-06=gpt-6-luna")
        names[old] = new
    unknown = sorted(names.keys() - {str(model) for model in present})
    if unknown:
        raise BadInput(f"--model {unknown[0]}: {name} has no outcomes of it")
    return names


def _check_folders(*paths: Path | None) -> None:
    """Refuse a file in a folder that does not exist before minutes are spent on what it would hold."""
    for path in paths:
        if path is not None and not path.parent.is_dir():
            raise BadInput(f"cannot write {path}: no folder {path.parent}; create it or name another")


def _write(path: Path, text: str) -> None:
    _write_bytes(path, text.encode())


def _write_bytes(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as exc:
        raise BadInput(f"cannot write {path}: {exc.strerror or exc}; name a file in a folder that exists") from None


def _drawer(path: Path | None) -> Callable[[Path, Report, str], None] | None:
    """Return what draws into a file of this kind, before minutes are spent on figures that could not be drawn."""
    if path is None:
        return None
    match path.suffix.lower():
        case ".html" | ".htm" | ".svg":
            return _draw_svg
        case _:
            raise BadInput(
                f"--plot {path.name}: the curve is drawn as a page or a vector graphic; name it .html or .svg"
            )


def _draw_svg(path: Path, report: Report, title: str) -> None:
    from policies.evaluate.curves import draw_curve, page

    svg = draw_curve(
        report.curve,
        chosen=report.measured,
        others=report.baselines,
        target=report.target,
        title=f"Quality and saving: {title}",
    )
    _write(path, svg + "\n" if path.suffix.lower() == ".svg" else page(svg, title=title))


def _line(name: str, measured: Measured) -> str:
    model = f"  ({measured.model})" if measured.model else ""
    return f"  {name:<20} {measured.quality_ratio:8.4f} {measured.saving:8.1%}{model}"


def _print_report(report: Report, *, flagship: str) -> None:
    say = click.echo
    say(
        f"Fitted on {report.train_items} items, measured on {report.test_items}; flagship {flagship}, target {report.target:g}"
    )
    say(f"  {'':<20} {'quality':>8} {'saving':>8}")
    say(_line("this policy", report.measured))
    for name, measured in report.baselines.items():
        say(_line(name.replace("_", " "), measured))
    say(
        f"Standard error of the quality measured: {report.realised.standard_error:.4f} ({report.realised.labels} paired items)"
    )
    if report.promised:
        say(
            f"Promised before measuring: {report.promised.ratio:.4f}, lower bound {report.promised.lower_bound():.4f}"
            f" ({report.promised.labels} labels, out of fold)"
        )
    say(
        "Share per plan: " + ", ".join(f"{name.replace('_', ' ')} {share:.1%}" for name, share in report.shares.items())
    )
    for path, share in list(report.paths.items())[:8]:
        say(f"  {share:6.1%}  {path}")
    if report.pair:
        shown = {
            "APGR": (report.pair.apgr, ".3f"),
            "CPT50": (report.pair.cpt50, ".1f"),
            "CPT80": (report.pair.cpt80, ".1f"),
        }
        say(
            "Pair, before the call: "
            + ", ".join(f"{k} {'-' if v is None else format(v, f)}" for k, (v, f) in shown.items())
        )


def _print_intents(report: IntentReport) -> None:
    say = click.echo
    say(
        f"{report.prompts} prompts: accuracy {report.accuracy:.3f}, macro F1 {report.macro_f1:.3f}, {report.ms_per_prompt:.2f} ms each"
    )
    say(f"  the 80 % most confident: accuracy {report.accuracy_at_80_coverage:.3f}")
    answered = "-" if report.accuracy_answered is None else f"{report.accuracy_answered:.3f}"
    say(f"  with abstention: {report.coverage:.1%} answered, accuracy {answered}")
    for intent, f1 in report.f1.items():
        say(f"  F1 {f1:.3f}  {intent}")


def _report_dict(report: Report) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "target": report.target,
        "train_items": report.train_items,
        "test_items": report.test_items,
        "quality_ratio": report.measured.quality_ratio,
        "quality_standard_error": report.realised.standard_error,
        "saving": report.measured.saving,
        "shares": report.shares,
        "paths": report.paths,
        "baselines": {name: measured.as_dict() for name, measured in report.baselines.items()},
        "singles": [measured.as_dict() for measured in report.singles],
        "by_intent": {intent: measured.as_dict() for intent, measured in report.by_intent.items()},
        "curve": [measured.as_dict() for measured in report.curve],
        "promised": None
        if report.promised is None
        else {"quality_ratio": report.promised.ratio, "lower_bound": report.promised.lower_bound()},
        "lacking": {intent: {"labels": count, "lacks": more} for intent, (count, more) in report.lacking.items()},
    }
    if report.pair:
        figures |= {"apgr": report.pair.apgr, "cpt50": report.pair.cpt50, "cpt80": report.pair.cpt80}
    finite: dict[str, Any] = _finite(figures)
    return finite


def _finite(value: Any) -> Any:
    """Replace what is not JSON by null: NaN (the ratio to a flagship that scored 0), infinity (the error of one item)."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
