"""A changed policy file is taken over as a whole, and a wrong one never."""

from __future__ import annotations

from pathlib import Path

import pytest

from policies.policyfile import parse
from workers.policywatch import PolicyWatch
from workers.runtime import SHIPPED_POLICY
from workers.telemetry import take_counts


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "policy.toml"
    file.write_text(SHIPPED_POLICY.read_text())
    return file


def made(path: Path) -> PolicyWatch:
    return PolicyWatch(path, parse(path.read_text(), path.name))


def test_a_changed_file_is_in_force_after_the_next_look(path: Path) -> None:
    watch = made(path)
    assert not watch.look()

    path.write_text(path.read_text().replace("max_attempts = ", "max_attempts = 1"))
    assert watch.look()

    assert watch.policy.max_attempts >= 10


@pytest.mark.parametrize("text", ["", "version = ", 'version = "x"\nflagship = "no-such-model"\n'])
def test_a_wrong_file_is_refused_once_and_the_old_policy_stays(path: Path, text: str) -> None:
    watch = made(path)
    before = watch.policy
    take_counts()

    path.write_text(text)
    assert not watch.look()
    assert not watch.look()

    assert watch.policy is before
    assert watch.trouble
    assert take_counts() == {"config.refused": 1}


def test_a_file_that_is_gone_or_half_written_is_waited_for(path: Path) -> None:
    watch = made(path)
    whole = path.read_text()
    path.unlink()
    assert not watch.look()
    assert watch.trouble == "No such file or directory"

    path.write_text(whole[: len(whole) // 2])
    watch.look()
    path.write_text(whole.replace("max_attempts = ", "max_attempts = 1"))

    assert watch.look()
    assert watch.trouble is None
