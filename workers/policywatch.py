"""Takes a changed policy file (routes, limits, prices) over while a process runs, as a whole or not at all.

A file that is wrong is refused with one event and one count, and the policy in force stays; it is said once for each state of
the file. The file is read, not watched for notices: a ConfigMap in Kubernetes is swapped by a symbolic link, and an editor
may leave it half written for a moment, which the next look finds whole.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

from policies.policyfile import Policy, parse
from waybill.errors import ConfigError
from workers.telemetry import emit

LOOK_EVERY_S = 2.0


class PolicyWatch:
    """One file and the policy that is in force.

    Attributes:
        policy: In force; replaced as a whole.
        trouble: Why the file that lies there now is not taken; None = it is in force.
    """

    def __init__(self, path: Path, policy: Policy) -> None:
        self.policy = policy
        self.trouble: str | None = None
        self._path = path
        self._seen = _digest(path)

    def look(self) -> bool:
        """Whether another policy is in force since this call."""
        seen = _digest(self._path)
        if seen == self._seen:
            return False
        self._seen = seen
        try:
            policy = parse(self._path.read_text(encoding="utf-8"), self._path.name)
        except (ConfigError, OSError, UnicodeDecodeError) as exc:
            self.trouble = exc.strerror or "unreadable" if isinstance(exc, OSError) else str(exc)
            emit("config.refused", level=logging.ERROR, what="policy", error=self.trouble)
            return False
        self.trouble = None
        if policy == self.policy:
            return False
        self.policy = policy
        emit("config.reloaded", what="policy", version=policy.version)
        return True

    async def keep_looking(self, take: Callable[[Policy], None], every_s: float = LOOK_EVERY_S) -> None:
        """Until cancelled: hand each new policy to `take`, in this loop, between two of its steps."""
        while True:
            await asyncio.sleep(every_s)
            if self.look():
                take(self.policy)


def _digest(path: Path) -> bytes | None:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return None
