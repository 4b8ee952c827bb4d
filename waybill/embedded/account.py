"""As whom a server may run: Postgres refuses to run as root, so root needs a way to be somebody else.

1. A normal user runs it plainly.
2. Root in a user namespace (`unshare --user`): the process believes to be `nobody`, while for the file system it is
   still the owner of what root owns. Works below a 0700 folder, changes no permission and makes no user.
3. Root where namespaces are forbidden (many containers): really `nobody`, with everything it touches handed over to it.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

NOBODY_FALLBACK = 65534


@dataclass(frozen=True)
class Account:
    """How to start a program so that it does not run as root."""

    #: Put before the program and its arguments.
    prefix: tuple[str, ...] = ()
    #: User and group to become before exec; None = stay who we are. Files for the program must be given to it
    #: (`hand_over`).
    uid: int | None = None

    def run(self, *argv: str | Path, stdin: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program to its end under this account; its exit code and output are the caller's to judge."""
        extra_groups: list[int] | None = None if self.uid is None else []
        return subprocess.run(
            [*self.prefix, *map(str, argv)],
            input=stdin,
            cwd=cwd,
            user=self.uid,
            group=self.uid,
            extra_groups=extra_groups,
            env=server_environment(),
            capture_output=True,
            text=True,
            check=False,
        )

    def hand_over(self, path: Path) -> None:
        """Make the account the owner of a file or folder we just made."""
        if self.uid is not None:
            os.chown(path, self.uid, self.uid)

    def can_run(self, program: Path) -> bool:
        """Whether the account gets to `program` through all the folders above it, and may run it."""
        return self.run("test", "-r", program, "-a", "-x", program).returncode == 0

    def traverses(self, folder: Path) -> bool:
        """Whether the account gets through `folder` to what it owns below it."""
        return self.run("test", "-x", folder).returncode == 0


def choose() -> Account:
    """The least intrusive account that works for a server which refuses to be root."""
    if os.geteuid() != 0:
        return Account()
    nobody = _nobody()
    if shutil.which("unshare"):
        namespace = Account(prefix=("unshare", "--user", f"--map-user={nobody}", f"--map-group={nobody}", "--"))
        if namespace.run("true").returncode == 0:
            return namespace
    return Account(uid=nobody)


def server_environment() -> dict[str, str]:
    """What a server sees of our environment: no keys, no PG* settings, one locale and time zone everywhere."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _nobody() -> int:
    try:
        return pwd.getpwnam("nobody").pw_uid
    except KeyError:
        return NOBODY_FALLBACK
