"""`./run clients [NAME ...]`: real clients, unmodified, pinned, each in a venv of its own, against a fleet with a sandbox.

Each runs twice: straight (Claude in Anthropic's dialect, GPT in OpenAI's) and crossed. The table goes to the screen and,
with --report, as JSON into a file. The venvs stay in `.waybill/clients`; only a changed pin installs again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sandbox.testing import spawned
from tests.fleet import ROOT, brisk_batches, clean_environment, running_fleet
from waybill import embedded
from waybill.cli.db import run_upgrade

HERE = Path(__file__).parent
PROGRAMS = HERE / "programs"
WAYS: Mapping[str, tuple[str, str]] = {
    "straight": ("claude-haiku-5-5", "gpt-6-luna"),
    "crossed": ("gpt-6-luna", "claude-haiku-5-5"),
}
"""What is asked for in Anthropic's dialect, and what in OpenAI's."""
DOCUMENTED: Mapping[tuple[str, str, str], str] = {
    ("curator", "straight", "messages"): "the client first asks a model that is there no more",
    ("curator", "crossed", "messages"): "the client first asks a model that is there no more",
}
"""(client, way, operation) -> why it cannot pass, whatever the gateway does; docs/gateway.md has the same."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a client's run gave."""

    client: str
    way: str
    passed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def unexpected(self) -> dict[str, str]:
        """Failures that the docs do not explain."""
        return {op: note for op, note in self.failed.items() if (self.client, self.way, op) not in DOCUMENTED}


def names() -> list[str]:
    """All clients."""
    return sorted(p.stem for p in PROGRAMS.iterdir() if p.stem not in ("common", "__pycache__"))


def prepare(client: str, folder: Path) -> list[str] | None:
    """The command of a client's program, with what it needs installed; None when that cannot be had here."""
    if client == "curl":
        return ["sh", str(PROGRAMS / "curl.sh")] if shutil.which("curl") else None
    home = folder / client
    wanted = HERE / "requirements" / ("node.json" if client == "node" else f"{client}.txt")
    mark = home / "installed-from"
    if client == "node":
        if not shutil.which("npm"):
            return None
        program = home / "node.mjs"
        if not mark.exists() or mark.read_bytes() != wanted.read_bytes():
            home.mkdir(parents=True, exist_ok=True)
            shutil.copy(wanted, home / "package.json")
            subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund"], cwd=home, check=True)
            shutil.copy(wanted, mark)
        shutil.copy(PROGRAMS / "node.mjs", program)
        return ["node", str(program)]
    return [str(environment(client, folder)), str(PROGRAMS / f"{client}.py")]


def environment(name: str, folder: Path) -> Path:
    """The python of a venv with the pinned requirements of `name`; made where it is not there yet."""
    home, wanted = folder / name, HERE / "requirements" / f"{name}.txt"
    mark, python = home / "installed-from", home / "bin" / "python"
    if not mark.exists() or mark.read_bytes() != wanted.read_bytes():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        uv = Path(sys.executable).parent / "uv"
        install = [str(uv), "pip", "install", "--quiet", "--python", str(python), "-r", str(wanted)]
        subprocess.run(install, check=True)
        shutil.copy(wanted, mark)
    return python


def run_client(client: str, command: list[str], base: str, way: str) -> Outcome:
    """Run a client's program one way."""
    claude, gpt = WAYS[way]
    env = {
        **clean_environment(),
        "WAYBILL_TEST_BASE": base,
        "WAYBILL_TEST_CLAUDE": claude,
        "WAYBILL_TEST_GPT": gpt,
        **{name: value for name, value in os.environ.items() if name == "WAYBILL_TEST_TRACE"},
    }
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500, check=False)
    outcome = Outcome(client, way)
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            said = json.loads(line)
            if said["ok"]:
                outcome.passed.append(said["op"])
            else:
                outcome.failed[said["op"]] = said["note"]
    if done.returncode or not (outcome.passed or outcome.failed):
        outcome.failed["program"] = (done.stderr or "no output")[-600:]
    if os.environ.get("WAYBILL_TEST_TRACE"):
        sys.stderr.write(done.stderr)
    return outcome


def run_all(clients: Iterable[str], folder: Path, *, say: bool = True) -> list[Outcome]:
    """Run these clients, both ways, against one fleet."""
    found = []
    commands = {client: prepare(client, folder) for client in clients}
    with tempfile.TemporaryDirectory() as scratch, embedded.services(Path(scratch) / "services") as services:
        database_url = embedded.create_database(str(services.database_url), "clients")
        run_upgrade(database_url)
        logs = Path(scratch) / "logs"
        logs.mkdir()
        with spawned("--latency", "none") as box:
            env = brisk_batches(box, logs)
            with running_fleet(database_url, str(services.redis_url), box.url, logs, gateway=True, env=env) as fleet:
                for client, command in commands.items():
                    for way in WAYS if command is not None else ():
                        outcome = run_client(client, command or [], fleet.gateway_url, way)
                        found.append(outcome)
                        if say:
                            _show(outcome)
    return found


def _show(outcome: Outcome) -> None:
    total = len(outcome.passed) + len(outcome.failed)
    print(f"{outcome.client:16} {outcome.way:9} {len(outcome.passed)}/{total}", flush=True)
    for op, note in outcome.failed.items():
        print(f"    {op}: {note}", flush=True)


def main() -> None:
    """The command."""
    options = argparse.ArgumentParser(prog="./run clients")
    options.add_argument("clients", nargs="*", help=", ".join(names()))
    options.add_argument("--folder", type=Path, default=ROOT / ".waybill" / "clients", help="where the venvs are")
    options.add_argument("--report", type=Path)
    given = options.parse_args()
    found = run_all(given.clients or names(), given.folder)
    if given.report is not None:
        rows = [{"client": o.client, "way": o.way, "passed": o.passed, "failed": o.failed} for o in found]
        given.report.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    passed = sum(len(o.passed) for o in found)
    print(f"{passed} of {passed + sum(len(o.failed) for o in found)} operations")
    sys.exit(1 if any(o.unexpected for o in found) else 0)


if __name__ == "__main__":
    main()
