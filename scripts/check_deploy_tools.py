"""What the deploy check borrows: a pinned kubectl that renders, the published schemas, a linter for Dockerfiles.

They live in an environment of their own below the state folder, installed by hash from requirements-deploy.lock: 250 MB that
no other part of the project needs. Nothing here speaks to a cluster.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements-deploy.lock"
OVERLAYS = ROOT / "deploy" / "k8s" / "overlays"
IN_TOOLS = Path(__file__).with_name("check_deploy_in_tools.py")
SUPPORTED = ("1.32", "1.37")
"""Oldest and newest Kubernetes whose schemas every object must satisfy."""

Object = dict[str, Any]


class CheckError(Exception):
    """The check cannot go on; one line that says why."""


def tools_folder() -> Path:
    """`$WAYBILL_STATE_DIR/deploy-tools`, by default `.waybill/deploy-tools` in the checkout."""
    return Path(os.environ.get("WAYBILL_STATE_DIR") or ROOT / ".waybill") / "deploy-tools"


def installed() -> bool:
    """Whether the tools are there and are those of the lock file."""
    stamp = tools_folder() / ".installed-from"
    return stamp.is_file() and stamp.read_bytes() == LOCK.read_bytes()


def install() -> None:
    """Make the tools' environment where it is missing or old.

    Raises:
        CheckError: pip or uv could not install it.
    """
    if installed():
        return
    folder = tools_folder()
    print(f"setting up {folder.name} from {LOCK.name} ...", file=sys.stderr, flush=True)
    (folder / ".installed-from").unlink(missing_ok=True)
    venv.create(folder, clear=True, with_pip=False, symlinks=True)
    uv = Path(sys.executable).with_name("uv")
    options = ["pip", "install", "--quiet", "--python", str(_program("python")), "--require-hashes", "-r", str(LOCK)]
    if subprocess.run([uv, *options], check=False).returncode != 0:
        raise CheckError(f"uv could not install {LOCK.name}; its message is above")
    (folder / ".installed-from").write_bytes(LOCK.read_bytes())


def _program(name: str) -> Path:
    return tools_folder() / "bin" / name


def render(folder: Path) -> list[Object]:
    """The objects of an overlay, in the order in which they would be applied.

    Raises:
        CheckError: Kustomize refuses the folder; its own line.
    """
    rendered = subprocess.run([_program("kubectl"), "kustomize", folder], capture_output=True, text=True, check=False)
    if rendered.returncode != 0:
        raise CheckError(f"{folder.name}: does not render: {_last(rendered.stderr)}")
    return documents(rendered.stdout)


def documents(text: str) -> list[Object]:
    """The documents of a YAML text."""
    return list(_ask("parse", text))


def validate(sets: Mapping[str, Sequence[Object]]) -> dict[str, list[str]]:
    """Complaints of Kubernetes' own schemas, for each set by its name.

    Kinds that those schemas do not know come back as `unknown apiVersion/kind name`: whoever asked decides.
    """
    question = json.dumps({"versions": SUPPORTED, "sets": sets})
    return dict(_ask("validate", question))


def hadolint(dockerfile: Path) -> list[str]:
    """What the Dockerfile linter says, a line each."""
    done = subprocess.run(
        [_program("hadolint"), "--no-color", dockerfile], capture_output=True, text=True, check=False, cwd=ROOT
    )
    said = (done.stdout + done.stderr).splitlines()
    return [line.removeprefix(f"{ROOT}/") for line in said if line.strip()] if done.returncode else []


def _ask(what: str, text: str) -> Any:
    """Run the part of this check that needs the tools' packages."""
    done = subprocess.run(
        [_program("python"), "-I", IN_TOOLS, what], input=text, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise CheckError(f"{IN_TOOLS.name} {what}: {_last(done.stderr)}")
    return json.loads(done.stdout)


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1].strip()
