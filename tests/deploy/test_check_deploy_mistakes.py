"""The deploy check catches what it is there for: one planted mistake at a time, each named in a line of its own."""

from __future__ import annotations

import copy
import re
import shutil
from pathlib import Path
from typing import Any

import check_deploy
import check_deploy_compose
import check_deploy_schemas
import check_deploy_tools as tools
import pytest

from tests.deploy.mistakes import MISTAKES, Mistake

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def planted(overlays: dict[str, list[tools.Object]]) -> dict[str, list[tools.Object]]:
    """Each overlay with one mistake in it."""
    found = {}
    for mistake in MISTAKES:
        objects = copy.deepcopy(overlays[mistake.overlay])
        mistake.plant(objects)
        assert objects != overlays[mistake.overlay], f"{mistake.name} changes nothing"
        found[mistake.name] = objects
    return found


@pytest.fixture(scope="module")
def refused(planted: dict[str, list[tools.Object]]) -> dict[str, list[str]]:
    """What Kubernetes' schemas say, all mistakes in one go: loading them costs a second."""
    foreign = {
        name: [one for one in objects if not check_deploy_schemas.knows(one)] for name, objects in planted.items()
    }
    return tools.validate(foreign)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_named(
    mistake: Mistake, planted: dict[str, list[tools.Object]], refused: dict[str, list[str]]
) -> None:
    objects = planted[mistake.name]

    said = check_deploy.schema_words(refused[mistake.name]) + check_deploy.own_schema_complaints(objects)
    # What the schemas refuse is not looked at further, as in the check itself.
    said = said or check_deploy.rule_complaints(objects)

    assert any(re.search(mistake.complaint, line) for line in said), said


def test_a_file_that_is_missing_is_named(deploy_tools: None, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "deploy" / "k8s", tmp_path / "k8s")
    (tmp_path / "k8s" / "base" / "control.yaml").unlink()

    said = check_deploy.check(tmp_path / "k8s" / "overlays" / "dev", rehearsal=False)

    assert len(said) == 1
    assert "control.yaml" in said[0]


COMPOSE: dict[str, tuple[Any, str]] = {
    "unknown flag": (lambda s: s["dispatcher"]["command"].append("--fast"), r"--fast"),
    "queue without worker": (lambda s: s.pop("worker-local"), r"routes to local\.hi"),
    "grace shorter than drain": (lambda s: s["control"].update(stop_grace_period="10s"), r"10 is less"),
    "password written out": (
        lambda s: s["flower"]["environment"].update(WAYBILL_FLOWER_PASSWORD="x"),
        r"WAYBILL_FLOWER_PASSWORD is written out",
    ),
    "open port": (lambda s: s["flower"].update(ports=["5555:5555"]), r"open to the network"),
    "latest image": (lambda s: s["valkey"].update(image="valkey/valkey"), r"needs a fixed tag"),
}


@pytest.mark.parametrize("name", COMPOSE)
def test_a_mistake_in_compose_is_named(name: str, deploy_tools: None) -> None:
    plant, complaint = COMPOSE[name]
    (document,) = tools.documents((ROOT / "compose.yaml").read_text())
    document = copy.deepcopy(document)  # services share what a YAML anchor names
    services = {key: copy.deepcopy(service) for key, service in document["services"].items()}
    plant(services)

    said = list(check_deploy_compose.complaints({"services": services}))

    assert any(re.search(complaint, line) for line in said), said
