"""`./run docs`: builds the documentation's site into site/; exit code 1 on a broken link. mkdocs lives in an environment of its own.

Pages are docs/*.md, the changelog, a start page made from the README, and the reference that is made from the code.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(Path(__file__).parent))

import reference

LOCK = ROOT / "requirements-docs.lock"
PAGES = ROOT / ".waybill" / "docs"
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def links(text: str) -> list[str]:
    """The targets of a page's links to files; links to other sites are not among them."""
    outside_code = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    return [m[3] for m in _LINK.finditer(outside_code) if not re.match(r"[a-z]+:|#", m[3])]


def gather(into: Path) -> None:
    """All pages, with links that lead out of docs/ as the paths of what they name.

    Raises:
        SystemExit: A link leads to nothing.
    """
    shutil.rmtree(into, ignore_errors=True)
    shutil.copytree(ROOT / "docs", into)
    for name, made in (("README.md", "index.md"), ("CHANGELOG.md", "changelog.md")):
        (into / made).write_text((ROOT / name).read_text(encoding="utf-8").replace("](docs/", "]("), encoding="utf-8")
    reference.write(into / "reference")
    for page in sorted(into.rglob("*.md")):
        page.write_text(_rewritten(page, into), encoding="utf-8")


def _rewritten(page: Path, into: Path) -> str:
    def shown(found: re.Match[str]) -> str:
        mark, words, target = found.groups()
        path = target.partition("#")[0]
        if re.match(r"[a-z]+:|#", target) or not path:
            return found[0]
        inside = (page.parent / path).resolve()
        if inside.is_dir() and (inside / "").exists():
            return f"{words} (`{path}`)"
        if inside.exists():
            return found[0]
        outside = (ROOT / "docs" / page.relative_to(into).parent / path).resolve()
        if page.name in ("index.md", "changelog.md"):
            outside = (ROOT / path).resolve()
        if not outside.exists():
            sys.exit(f"docs: {page.relative_to(into)}: the link to {target} leads to nothing")
        return f"{mark}{words} (`{outside.relative_to(ROOT)}`)"

    text = page.read_text(encoding="utf-8")
    parts = re.split(r"(```.*?```)", text, flags=re.DOTALL)
    return "".join(part if part.startswith("```") else _LINK.sub(shown, part) for part in parts)


def environment() -> Path:
    """The folder with mkdocs in it; made where it is missing or old."""
    folder = Path(os.environ.get("WAYBILL_STATE_DIR") or ROOT / ".waybill") / "docs-tools"
    stamp = folder / ".installed-from"
    if not stamp.is_file() or stamp.read_bytes() != LOCK.read_bytes():
        print(f"setting up {folder.name} from {LOCK.name} ...", file=sys.stderr, flush=True)
        venv.create(folder, clear=True, with_pip=False, symlinks=True)
        uv = Path(sys.executable).with_name("uv")
        options = ["--quiet", "--python", str(folder / "bin" / "python"), "--require-hashes", "-r", str(LOCK)]
        if subprocess.run([uv, "pip", "install", *options], check=False).returncode != 0:
            sys.exit(f"docs: uv could not install {LOCK.name}; its message is above")
        stamp.write_bytes(LOCK.read_bytes())
    return folder


def main(arguments: Sequence[str]) -> int:
    """Build, strictly; further arguments go to mkdocs."""
    folder = environment()
    gather(PAGES)
    command = [str(folder / "bin" / "mkdocs"), "build", "--strict", "--quiet", *arguments]
    done = subprocess.run(command, cwd=ROOT, check=False, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    if done.returncode == 0:
        print(f"docs: {len(list((ROOT / 'site').rglob('*.html')))} pages in site/")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
