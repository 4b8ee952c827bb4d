"""Where Postgres lives: in the state folder wherever its account gets there, otherwise in a folder outside.

Outside is for one case only: root without user namespaces, with the checkout below a folder that is closed to others
(such as root's own home in a container). Nobody can then reach the state folder, and opening it to all is not ours to
do.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

from waybill.embedded.account import Account
from waybill.embedded.binaries import PostgresBinaries
from waybill.embedded.errors import EmbeddedError

OUTSIDE = Path("/var/lib")
PREFIX = "waybill-"
#: In a home outside: the state folder that it belongs to. When that is gone, the home goes too.
BELONGS_TO = "belongs-to"


def find(state_dir: Path, account: Account) -> Path:
    """The folder for the data of `state_dir`, which the account can traverse; always the same one.

    Raises:
        EmbeddedError: There is none.
    """
    if account.uid is None:
        return state_dir  # made by the very user that the server runs as
    os.chown(state_dir, -1, account.uid)
    state_dir.chmod(0o710)  # the account may pass through; what else is in there is closed by its own modes
    if account.traverses(state_dir):
        return state_dir
    _sweep()
    home = outside(state_dir)
    try:
        home.mkdir(mode=0o755, exist_ok=True)
        home.chmod(0o755)  # whatever the umask was
        (home / BELONGS_TO).write_text(str(state_dir))
    except OSError as error:
        raise EmbeddedError(
            f"Postgres refuses to run as root, and nobody else can reach {state_dir} or {home} ({error.strerror}); "
            "run as a normal user or set WAYBILL_DATABASE_URL"
        ) from error
    return home


def outside(state_dir: Path) -> Path:
    """Where the home of `state_dir` is when it is not in there."""
    return OUTSIDE / f"{PREFIX}{hashlib.sha256(str(state_dir).encode()).hexdigest()[:12]}"


def reachable(binaries: PostgresBinaries, account: Account, home: Path) -> PostgresBinaries:
    """The binaries themselves, or a copy of the installation (40 MB, once per version) that the account can run."""
    if account.can_run(binaries.postgres):
        return binaries
    target = home / f"installation-{binaries.postgres.stat().st_mtime_ns:x}"
    if not target.is_dir():
        stage = target.with_name(f"{target.name}.new-{os.getpid()}")
        shutil.copytree(binaries.installation, stage, symlinks=True)
        stage.chmod(0o755)
        stage.rename(target)
    return PostgresBinaries(postgres=target / "bin" / "postgres", initdb=target / "bin" / "initdb")


def _sweep() -> None:
    """Remove the homes whose state folder is gone, such as those of tests."""
    for home in OUTSIDE.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # not one of ours, or somebody else sweeps too
            if not Path((home / BELONGS_TO).read_text()).exists():
                shutil.rmtree(home)
