"""No link in the documentation leads to nothing, and the reference has every command and setting."""

from __future__ import annotations

import re
import sys

import pytest

from tests.fleet import ROOT
from waybill.settings import Settings

sys.path.insert(0, str(ROOT / "scripts"))
import reference

import docs as site

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_something(page) -> None:  # type: ignore[no-untyped-def]
    for target in site.links(page.read_text(encoding="utf-8")):
        assert (page.parent / target.partition("#")[0]).exists(), target


def test_the_reference_has_every_setting() -> None:
    page = reference.settings_page()

    for name in Settings.model_fields:
        assert f"| `{Settings.variable(name)}` |" in page


def test_the_reference_has_every_command_with_its_help() -> None:
    page = reference.cli_page()

    for words in ("waybill up", "waybill config check", "waybill dlq requeue", "waybill retention set"):
        assert f"## {words}\n" in page
    assert page.count("Usage: ") == len(re.findall(r"^## waybill ", page, re.MULTILINE)) > 30


def test_commands_that_the_runbook_names_exist() -> None:
    words = {name for name, _ in reference.commands(reference.cli, "waybill")}
    for page in ("runbook.md", "operations.md", "howto.md", "oncall.md"):
        for named in re.findall(r"`waybill ([a-z]+(?: [a-z]+)?)", (ROOT / "docs" / page).read_text()):
            assert f"waybill {named}" in words or f"waybill {named.split()[0]}" in words, f"{page}: waybill {named}"
