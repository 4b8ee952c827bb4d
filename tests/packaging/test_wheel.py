"""The wheel beside a backend service that has folders with our names, and the cost of importing the client."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-c", f"from hatchling.build import build_wheel; build_wheel({str(folder)!r})"],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    return next(folder.glob("*.whl"))


def test_it_holds_the_library_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()

    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"waybill"}
    assert "waybill/py.typed" in names


def test_a_service_with_folders_of_our_names_can_use_the_client(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    service = tmp_path / "service"
    for name in ("workers", "policies", "producers"):
        (service / name).mkdir(parents=True)
        (service / name / "__init__.py").write_text("mine = True\n")
    code = "import workers, policies, producers; from waybill import Client, Job; assert workers.mine; print(Client.__module__)"

    told = subprocess.run(
        [sys.executable, "-c", code], cwd=service, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": ""},
    )  # fmt: skip

    assert told.stdout.strip() == "waybill.client", told.stderr


def test_a_verb_of_the_fleet_says_that_it_needs_a_checkout(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()];"
        f"sys.path = [{str(tmp_path / 'site')!r}] + [p for p in sys.path if p not in ('', {str(ROOT)!r})];"
        "sys.argv = ['waybill', 'demo']; from waybill.cli import main; main()"
    )

    told = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert told.returncode == 1
    assert "from a checkout or the image" in told.stderr
    assert told.stderr.count("\n") == 1, told.stderr


def test_importing_the_client_costs_at_most_twice_importing_pydantic() -> None:
    # Both in fresh processes, in turn, CPU time, the least of several: the machine may be busy.
    code = "import time; a = time.process_time(); {}; print(time.process_time() - a)"
    least = {}
    for _ in range(5):
        for what in (
            "from pydantic import BaseModel, ConfigDict, Field, field_validator",
            "from waybill import Client",
        ):
            told = subprocess.run(
                [sys.executable, "-c", code.format(what)], cwd=ROOT, capture_output=True, text=True, check=True
            )
            least[what] = min(least.get(what, 9.0), float(told.stdout))
    pydantic_s, client_s = least.values()

    assert client_s <= 2 * pydantic_s, least
