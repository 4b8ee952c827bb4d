"""S34, S35: the batch runner reads nothing outside its folder, and writes no cell that a spreadsheet would run."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from producers.folder import Folder
from producers.outputs import defused
from waybill.cli import cli


def read(folder: Path) -> list[str]:
    """The names and problems of a folder's rows."""
    return [str(row) for row in Folder(folder).rows()]


def test_s34_links_out_of_the_folder_and_devices_are_no_documents(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret.txt").write_text("CANARY")
    (folder / "good.txt").write_text("fine")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "up").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.txt")
    (folder / "device.txt").symlink_to("/dev/zero")

    rows = read(folder)

    assert "CANARY" not in " ".join(rows)
    assert any("fine" in row for row in rows)


@pytest.mark.parametrize("cell", ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1"])
def test_s35_no_cell_begins_a_formula(cell: str, tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerow([defused(cell)])

    with path.open(newline="") as file:
        [[written]] = list(csv.reader(file))
    assert written == f"'{cell}"


def test_s35_it_is_on_unless_switched_off() -> None:
    assert "--raw-csv" in CliRunner().invoke(cli, ["run", "--help"]).output
