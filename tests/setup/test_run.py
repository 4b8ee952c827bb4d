"""`./run` and its helpers: what can be tried without fetching or compiling anything."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "scripts"))

import local_lane  # noqa: E402 - a program beside the packages, not in one

RUN_FILES = (
    "run",
    "pyproject.toml",
    "requirements.lock",
    "requirements-tools.lock",
    "requirements-local.lock",
    "scripts/local_lane.py",
    "scripts/llama_without_common.cmake",
)
LOCK_FILES = ("requirements.lock", "requirements-tools.lock", "requirements-local.lock")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose environment is up to date: its programs are stand-ins that say how they were called."""
    root = tmp_path / "a checkout"
    for name in RUN_FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, root / name)
    programs = root / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "waybill", "pytest"):
        (programs / name).write_text(f'#!/bin/sh\necho "{name} in $(pwd -P):$(printf " <%s>" "$@")"\n')
        (programs / name).chmod(0o755)
    inputs = b"".join((root / name).read_bytes() for name in ("requirements.lock", "requirements-tools.lock"))
    inputs += (root / "pyproject.toml").read_bytes() + f"{root.resolve()}\n".encode()
    (root / ".venv" / ".installed-from").write_bytes(inputs)
    return root


def call(
    checkout: Path, *arguments: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [checkout / "run", *arguments],
        cwd=cwd,
        env={**os.environ, "WAYBILL_LOCAL": "0", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def path_with(tmp_path: Path, **programs: str) -> str:
    """A PATH that has only the programs a shell script needs, and these."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("sh", "cat", "cmp", "dirname", "rm", "tail", "uname", "sed"):
        found = shutil.which(name)
        assert found
        (folder / name).symlink_to(found)
    for name, script in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return str(folder)


@pytest.mark.parametrize(("shell", "script"), [("sh", "run"), ("bash", ".ci/run")])
def test_scripts_are_well_formed(shell: str, script: str) -> None:
    checked = subprocess.run([shell, "-n", REPOSITORY / script], capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stderr
    assert os.access(REPOSITORY / script, os.X_OK)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", ["run", ".ci/run"])
def test_scripts_have_no_known_traps(script: str) -> None:
    checked = subprocess.run(["shellcheck", REPOSITORY / script], capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stdout


def test_verbs_reach_the_program_from_any_folder_with_their_arguments_whole(checkout: Path, tmp_path: Path) -> None:
    said = call(checkout, "run", "a folder", "--intent", "extraction", cwd=tmp_path)

    assert said.returncode == 0, said.stderr
    assert said.stdout == f"waybill in {tmp_path.resolve()}: <run> <a folder> <--intent> <extraction>\n"


def test_tests_run_in_the_checkout(checkout: Path, tmp_path: Path) -> None:
    said = call(checkout, "test", "-k", "two words", cwd=tmp_path)

    assert said.stdout == f"pytest in {checkout.resolve()}: <-k> <two words>\n"


@pytest.mark.parametrize("wrong", [(), ("ruff",), ("pytest",), ("mypy", "pytest")])
def test_check_says_all_that_is_wrong_and_keeps_the_tests_summary(checkout: Path, wrong: tuple[str, ...]) -> None:
    for name in ("ruff", "mypy", "lint-imports", "pytest"):
        program = checkout / ".venv" / "bin" / name
        program.write_text(f"#!/bin/sh\necho {name} was here\nexit {int(name in wrong)}\n")
        program.chmod(0o755)

    said = call(checkout, "check")

    assert said.returncode == (1 if wrong else 0)
    assert "pytest was here" in said.stdout
    for name in ("ruff", "mypy", "lint-imports"):
        assert f"{name} was here" in said.stderr
    steps = {"ruff": "failed: format lint", "mypy": "failed: types script-types"}
    for name in wrong:
        assert steps.get(name, "tests") in said.stderr


def test_nothing_to_do_costs_less_than_half_a_second(checkout: Path) -> None:
    call(checkout, "status")  # the files are in the page cache now

    began_s = time.monotonic()
    said = call(checkout, "status")

    assert said.stderr == ""
    assert time.monotonic() - began_s < 0.5


def test_changed_lock_file_is_installed_again(checkout: Path) -> None:
    with (checkout / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")

    said = call(checkout, "status")

    # The stand-in for python takes every call, so the first real program that is missing is uv.
    assert "setting up .venv" in said.stderr
    assert said.returncode == 1
    assert not (checkout / ".venv" / ".installed-from").exists()


def test_machine_without_a_fitting_python_is_told_what_to_install(checkout: Path, tmp_path: Path) -> None:
    shutil.rmtree(checkout / ".venv")

    said = call(checkout, "status", PATH=path_with(tmp_path, python3="exit 1"))

    assert said.returncode == 1
    assert re.fullmatch(r"run: no python >= 3\.11 found; (apt-get|brew) install \S+\n", said.stderr)


def test_machine_whose_python_has_no_venv_is_told_what_to_install(checkout: Path, tmp_path: Path) -> None:
    shutil.rmtree(checkout / ".venv")
    bare = 'case "$2" in *ensurepip*) exit 1 ;; esac; [ "$1" != -V ] || echo Python 3.11.2'

    said = call(checkout, "status", PATH=path_with(tmp_path, python3=bare))

    assert said.returncode == 1
    assert re.search(r"cannot make a venv; (apt-get install python3-venv|brew install \S+)$", said.stderr.strip())


def test_checkout_that_was_moved_gets_a_new_environment(checkout: Path, tmp_path: Path) -> None:
    moved = checkout.rename(tmp_path / "moved")

    said = call(moved, "status", PATH=path_with(tmp_path, python3="exit 1"))

    assert "no python >= 3.11 found" in said.stderr
    assert not (moved / ".venv").exists()


def test_local_lane_that_cannot_be_had_stops_nothing_and_is_not_tried_each_time(checkout: Path) -> None:
    counted = 'echo tried >>"$(dirname "$0")/tries"; echo "local lane off: no C++ compiler" >&2; exit 3'
    (checkout / ".venv" / "bin" / "python").write_text(f"#!/bin/sh\n{counted}\n")

    first, second = (call(checkout, "up", WAYBILL_LOCAL="1") for _ in range(2))

    assert first.stdout.startswith("waybill in ")
    assert second.stdout.startswith("waybill in ")
    assert "local lane off: no C++ compiler" in first.stderr
    assert (checkout / ".venv" / "bin" / "tries").read_text() == "tried\n"


def test_lock_files_have_hashes_for_everything_and_no_address() -> None:
    for name in LOCK_FILES:
        text = (REPOSITORY / name).read_text()
        assert "://" not in text, name
        blocks = local_lane.locked_blocks(text)
        assert len(blocks) > 5, name
        assert [package for package, block in blocks.items() if "--hash=sha256:" not in block] == [], name


def test_lock_files_agree_where_they_name_the_same_package() -> None:
    versions: dict[str, str] = {}
    for name in LOCK_FILES:
        for package, block in local_lane.locked_blocks((REPOSITORY / name).read_text()).items():
            pins = " ".join(re.findall(r"==(\S+)", re.sub(r";[^\n]*", "", block)))
            assert versions.setdefault(package, pins) == pins, package


def test_blocks_of_a_lock_file_keep_their_markers_together() -> None:
    hashed = " \\\n    --hash=sha256:aa\n"
    text = f"a==1{hashed}b==2 ; x < '3'{hashed}b==3 ; x >= '3'{hashed}"

    blocks = local_lane.locked_blocks(text)

    assert list(blocks) == ["a", "b"]
    assert blocks["a"] == "a==1 \\\n    --hash=sha256:aa\n"
    assert blocks["b"].count("--hash") == 2


def test_machine_without_a_compiler_is_told_so_in_one_line(tmp_path: Path) -> None:
    said = subprocess.run(
        [sys.executable, REPOSITORY / "scripts" / "local_lane.py"],
        env={"PATH": str(tmp_path), "HOME": str(tmp_path), "CXX": "no-such-compiler"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert said.returncode == local_lane.EXIT_UNAVAILABLE
    assert re.fullmatch(r"local lane off: no C\+\+ compiler; .+, then \./run local\n", said.stderr)


def test_progress_of_a_build_is_read_from_its_log(tmp_path: Path) -> None:
    log = tmp_path / "build.log"

    log.write_text("Preparing metadata\n")
    assert local_lane.progress(log) == "fetching and unpacking the source"
    log.write_text("  [1/83] Building C object\n  [37/83] Building CXX object\n")
    assert local_lane.progress(log) == "step 37/83"


def test_failed_build_is_told_by_its_first_error(tmp_path: Path) -> None:
    log = tmp_path / "build.log"

    log.write_text("ok\n  x.cpp:1:1: fatal error: no such file: omp.h\n  error: command failed\n")

    assert local_lane.complaint(log) == "x.cpp:1:1: fatal error: no such file: omp.h"
