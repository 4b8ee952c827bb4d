"""Where a test of the verbs stands: a fleet, its sandbox and ledger, and the command line in a folder of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sandbox.testing import Running
from tests.fleet import ROOT, clean_environment
from tests.quality.ledgerrows import LedgerRows
from waybill import Client


@dataclass(frozen=True)
class Place:
    """What a test works with."""

    env: dict[str, str]
    client: Client
    sandbox: Running
    ledger: LedgerRows
    folder: Path
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Of the jobs that were submitted first, by id."""

    def waybill(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command."""
        code = "import sys; from waybill.cli import main; sys.argv[0] = 'waybill'; main()"
        return subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=self.folder, capture_output=True, text=True, timeout=300, check=False,
            env={**clean_environment(), "PYTHONPATH": str(ROOT), **self.env},
        )  # fmt: skip
