"""Everything that is wrong with a command is one line, before anything is submitted: no service is needed to find it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from producers.batch import BatchSpec, check
from producers.policy import load_policy
from producers.refusal import Refused
from waybill.cli.run import run
from waybill.client import AsyncClient
from waybill.errors import WaybillError
from waybill.settings import Settings

POLICY = load_policy(Settings())
CLIENT = AsyncClient("postgresql://u@127.0.0.1:9/none", "redis://127.0.0.1:9/0")


@pytest.fixture
def spec(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "in.jsonl").write_text('{"text": "hello", "n": 1}\n')
    return {
        "input": tmp_path / "in.jsonl",
        "output": tmp_path / "out.jsonl",
        "intent": "extraction",
        "prompt": "Read {text}",
        "prompt_name": "prompt.txt",
        "policy": POLICY,
    }


def test_a_good_command_passes(spec: dict[str, Any]) -> None:
    plan = check(BatchSpec(**spec), CLIENT)

    assert plan.survey.rows == 1
    assert plan.template.fields == ("text",)
    assert plan.job["tenant"] == "default"


@pytest.mark.parametrize(
    "change, told",
    [
        ({"intent": "extracting"}, "intent 'extracting' has no plan in policy"),
        ({"intent": "Not An Intent"}, "intent"),
        ({"model": "gpt-99"}, "model 'gpt-99' is not in the catalogue; known: claude-"),
        ({"model": "claude-haiku-5-5", "local_only": True}, "must stay on local models"),
        ({"prompt": "no field"}, "write {text}"),
        ({"prompt": "Read {txt}"}, "no column 'txt'; its columns are: text, n"),
        ({"prompt": "Read {text.__class__}"}, "no column 'text.__class__'"),
        ({"prompt": '{"a": {text}}'}, "write {{ and }}"),
        ({"id_column": "id"}, "--id-column: INPUT"),
        ({"filled": ("body",)}, "--field: INPUT"),
        ({"local_only_column": "private"}, "--local-only-column: INPUT"),
        ({"schema": {"type": "objekt"}}, "the schema is not a JSON schema"),
        ({"schema": {"$ref": "file:///etc/passwd"}}, "only references inside the schema"),
        ({"schema": {"type": "object"}, "labels": ("a", "b")}, "not both"),
        ({"labels": ("a",)}, "2 to 100 different labels"),
        ({"labels": ("a", "a")}, "2 to 100 different labels"),
        ({"deadline_s": -1.0}, "deadline_s"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"tenant": "a b"}, "tenant"),
        ({"limit": 0}, "--limit 0"),
        ({"output": Path("out.txt")}, "name it .jsonl, .csv or .parquet"),
        ({"input": Path("nowhere.csv")}, "there is no such file"),
    ],
)
def test_a_bad_command_is_one_line_that_names_the_thing(
    spec: dict[str, Any], change: dict[str, Any], told: str
) -> None:
    with pytest.raises(Refused) as refused:
        check(BatchSpec(**(spec | change)), CLIENT)

    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "content, told",
    [("", "has no rows"), ("\n\n", "has no rows"), ("nonsense\n[]\n", "not one row can be read; the first: line 1 is not JSON"),
     ('{"text": 1, "_usd": 2}', "'_usd'")],
)  # fmt: skip
def test_an_input_of_which_nothing_can_be_used_is_refused(spec: dict[str, Any], content: str, told: str) -> None:
    spec["input"].write_text(content)

    with pytest.raises(Refused, match="INPUT") as refused:
        check(BatchSpec(**spec), CLIENT)

    assert told in str(refused.value)


def test_an_empty_folder_is_refused(spec: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(Refused, match="no files"):
        check(BatchSpec(**(spec | {"input": tmp_path / "empty"})), CLIENT)


def command(folder: Path, *extra: str, **files: str) -> tuple[int, str]:
    """Exit code and message of `waybill run` in a folder with a usable input."""
    for name, content in {"in.jsonl": '{"text": "x"}\n', "p.txt": "{text}", **files}.items():
        (folder / name).write_text(content)
    args = [str(folder / "in.jsonl"), "--intent", "extraction", "--prompt", str(folder / "p.txt"), *extra]
    result = CliRunner().invoke(run, args, env={"WAYBILL_STATE_DIR": str(folder), "WAYBILL_POLICY_FILE": ""})
    message = str(result.exception) if isinstance(result.exception, WaybillError) else result.output
    return 1 if isinstance(result.exception, WaybillError) else result.exit_code, message


@pytest.mark.parametrize(
    "extra, files, told",
    [
        ((), {}, "Missing option '--output'"),
        (("--output", "o.csv", "--frobnicate"), {}, "No such option"),
        (("--output", "o.csv", "--limit", "many"), {}, "not a valid integer"),
        (("--output", "o.csv"), {"p.txt": " \n"}, "is empty"),
        (("--output", "o.csv", "--schema", "nowhere.json"), {}, "--schema nowhere.json: cannot be read"),
        (("--output", "o.csv", "--system", "nowhere.txt"), {}, "--system nowhere.txt: cannot be read"),
        (("--output", "o.csv", "--context", "nowhere.txt"), {}, "--context nowhere.txt: cannot be read"),
        (("--output", "o.csv", "--report", "no/where.json"), {}, "--report no/where.json: cannot be written"),
        (("--output", "o.csv"), {}, "Set a key, or try --sandbox"),
    ],
)
def test_a_bad_command_line_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: tuple[str, ...], files: dict[str, str], told: str
) -> None:
    for name in ("WAYBILL_DATABASE_URL", "WAYBILL_REDIS_URL", "ANTHROPIC_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    code, message = command(tmp_path, *extra, **files)

    assert code == 1
    assert told in message


@pytest.mark.parametrize(
    "schema, told", [("{", "is not JSON"), ("[]", "must be a JSON object"), ("[" * 10**5, "too deeply")]
)
def test_a_schema_file_that_holds_none_is_refused(tmp_path: Path, schema: str, told: str) -> None:
    path = tmp_path / "s.json"
    path.write_text(schema)

    code, message = command(tmp_path, "--output", str(tmp_path / "o.csv"), "--schema", str(path))

    assert code == 1
    assert told in message


def test_help_tells_the_exit_codes() -> None:
    result = CliRunner().invoke(run, ["--help"])

    assert result.exit_code == 0
    assert "2 some have" in result.output.replace("\n ", "")


def test_a_key_of_the_demo_and_of_a_typed_command_are_the_same_work(spec: dict[str, Any]) -> None:
    schema = json.loads('{"type": "object", "required": ["a"]}')

    one = check(BatchSpec(**spec, schema=schema), CLIENT)
    other = check(BatchSpec(**spec, schema=dict(reversed(schema.items())), deadline_s=9.0), CLIENT)

    assert one.digest == other.digest
