"""The deploy check's tools, and the overlays as they are."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import check_deploy_tools as tools  # noqa: E402 - programs beside the packages, not in one


@pytest.fixture(scope="session")
def deploy_tools() -> None:
    """kubectl and the schemas: installed where WAYBILL_DEPLOY=1 says so, else used where they are already."""
    if os.environ.get("WAYBILL_DEPLOY") == "1":
        tools.install()
    elif not tools.installed():
        pytest.skip("the deploy tools are not installed; ./run check-deploy or WAYBILL_DEPLOY=1 installs them")


@pytest.fixture(scope="session")
def overlays(deploy_tools: None) -> dict[str, list[tools.Object]]:
    """What each overlay renders to."""
    return {path.name: tools.render(path) for path in sorted(tools.OVERLAYS.iterdir()) if path.is_dir()}
