"""The examples and the README's code run as they are."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fleet import ROOT, RunningFleet, clean_environment


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_an_example_runs(path: Path, urls: tuple[str, str], fleet: RunningFleet) -> None:
    env = {**clean_environment(), "WAYBILL_DATABASE_URL": urls[0], "WAYBILL_REDIS_URL": urls[1]}

    told = subprocess.run([sys.executable, str(path)], env=env, cwd=ROOT, capture_output=True, text=True, check=False)

    assert told.returncode == 0, told.stderr
    assert told.stdout.strip()
    assert "no answer:" not in told.stdout


def test_the_readmes_program_runs(urls: tuple[str, str], fleet: RunningFleet) -> None:
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    env = {**clean_environment(), "WAYBILL_DATABASE_URL": urls[0], "WAYBILL_REDIS_URL": urls[1]}

    told = subprocess.run(
        [sys.executable, "-c", code[0]], env=env, cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert len(code) == 1
    assert told.returncode == 0, told.stderr
    assert "claude-sonnet-5-5" in told.stdout


def test_every_link_of_the_readme_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text())

    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
