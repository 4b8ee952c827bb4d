"""What `./run check-image` would say of images that are wrong. The build itself takes minutes and is run by hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import check_image
import pytest

GOOD: dict[str, Any] = {"User": "10001:10001", "Entrypoint": ["waybill"], "Env": ["PATH=/opt/waybill/venv/bin"]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A file system like the image's: nothing of it is its user's."""
    for folder in (
        "usr/bin",
        "usr/local/bin",
        "opt/waybill/venv/bin",
        "opt/waybill/venv/lib/python3.13/site-packages/waybill",
        "tmp",
    ):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "tmp").chmod(0o1777)
    (tmp_path / "opt/waybill/venv/bin/waybill").touch(0o755)
    return tmp_path


def test_an_image_as_it_should_be_is_passed(root: Path) -> None:
    assert check_image.config_complaints(GOOD) == []
    assert check_image.root_complaints(root, 10001) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"User": ""}, "its user is 'root'"),
        ({"User": "waybill"}, "its user is 'waybill'"),
        ({"User": "0:0"}, "its user is '0:0'"),
        ({"Entrypoint": ["sh", "-c", "waybill"]}, "entry point"),
        ({"Volumes": {"/data": {}}}, "volumes"),
        ({"Env": ["ANTHROPIC_API_KEY=sk-1"]}, "ANTHROPIC_API_KEY"),
    ],
)
def test_a_wrong_configuration_is_told(change: dict[str, Any], said: str) -> None:
    [complaint] = check_image.config_complaints({**GOOD, **change})

    assert said in complaint
    assert "sk-1" not in complaint


@pytest.mark.parametrize("path", ["usr/bin/gcc", "usr/local/bin/uv", "opt/waybill/venv/bin/cmake"])
def test_a_compiler_is_told(root: Path, path: str) -> None:
    (root / path).touch()

    assert check_image.root_complaints(root, 10001) == [f"/{path}: a compiler or build tool in the last stage"]


def test_development_tools_are_told(root: Path) -> None:
    (root / "opt/waybill/venv/lib/python3.13/site-packages/pytest").mkdir()

    [complaint] = check_image.root_complaints(root, 10001)

    assert "pytest" in complaint


def test_what_its_user_can_change_is_told(root: Path) -> None:
    (root / "opt/waybill/loose").touch()
    (root / "opt/waybill/loose").chmod(0o666)

    assert check_image.root_complaints(root, 10001) == ["/opt/waybill/loose: its user can change it"]
    assert "/opt/waybill/venv: its user can change it" in check_image.root_complaints(root, os.getuid())


def test_the_base_is_read_from_the_dockerfile() -> None:
    assert check_image.base_of(check_image.DOCKERFILE.read_text()).startswith("python:3.")


def test_without_buildah_it_says_so_and_proves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)

    codes = [check_image.main([]), check_image.main(["--require"])]

    assert codes == [0, 1]
    assert "SKIPPED, nothing was proved: buildah is not installed" in capsys.readouterr().out
