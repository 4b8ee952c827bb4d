"""Build the wheel and look into it: whoever installs Waybill gets the package `waybill` and nothing else.

Other top-level folders of this repository have names (`workers`, `policies`) which a service may well use for its own.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def main() -> int:
    """Exit code 1 and a line for each thing that is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        uv = Path(sys.executable).with_name("uv")
        options = ["--quiet", "--wheel", "--no-build-isolation", "--python", sys.executable, "--out-dir", folder]
        built = subprocess.run([uv, "build", *options, REPOSITORY], check=False)
        if built.returncode != 0:
            return 1
        wheel = next(Path(folder).glob("*.whl"))
        names = zipfile.ZipFile(wheel).namelist()
    strange = {name.split("/")[0] for name in names if not re.match(r"waybill(-[^/]+\.dist-info)?/", name)}
    complaints = [
        f"{wheel.name} holds {top}, which every service that installs it would get" for top in sorted(strange)
    ]
    complaints += [
        f"{wheel.name} lacks {name}" for name in ("waybill/__init__.py", "waybill/py.typed") if name not in names
    ]
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    if not complaints:
        print(f"{wheel.name}: {len(names)} files, top level is exactly waybill")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
