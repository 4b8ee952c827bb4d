"""Writes the reference of commands and settings from the code: docs that cannot be out of date."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from waybill import settings
from waybill.cli import cli
from waybill.settings import Settings


def documented_fields() -> dict[str, str]:
    """Each setting's docstring: the text that stands below it in the class."""
    (tree,) = [
        node
        for node in ast.parse(inspect.getsource(settings)).body
        if isinstance(node, ast.ClassDef) and node.name == "Settings"
    ]
    found: dict[str, str] = {}
    for node, following in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            text = ""
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                text = " ".join(str(following.value.value).split())
            found[node.target.id] = text
    return found


def settings_page() -> str:
    """Every setting: variable, default, meaning."""
    texts = documented_fields()
    lines = [
        "# Settings",
        "",
        "All settings are environment variables, read once at start. `waybill config show` says what is set and where it comes from.",
        "",
        "| variable | default | meaning |",
        "|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        default = "-" if field.default is None else f"`{field.default}`"
        lines.append(f"| `{Settings.variable(name)}` | {default} | {texts[name].replace('|', chr(92) + '|') or '-'} |")
    return "\n".join(lines) + "\n"


def commands(command: click.Command, words: str) -> Iterator[tuple[str, click.Command]]:
    """A command and those below it, each with the words that call it."""
    yield words, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None, name
            yield from commands(below, f"{words} {name}")


def cli_page() -> str:
    """Every command as its --help tells it."""
    lines = ["# Commands", "", "In a checkout `./run VERB` is the same as `waybill VERB`.", ""]
    for words, command in commands(cli, "waybill"):
        if words == "waybill":
            continue
        context = click.Context(command, info_name=words, max_content_width=100)
        lines += [f"## {words}", "", "```text", command.get_help(context), "```", ""]
    return "\n".join(lines)


def write(folder: Path) -> None:
    """Both pages into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.md").write_text(settings_page(), encoding="utf-8")
    (folder / "cli.md").write_text(cli_page(), encoding="utf-8")
