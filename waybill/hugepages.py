"""Environment under which a Python process keeps its heap in huge pages (2 MB instead of 4 KB), where the system has them.

A call touches some thousand small pages of each process on its way. Where their translations are slow to come by (under
virtualization, after a pause) that costs more than the work itself: docs/decisions/0157-huge-pages.md has the figures.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

HEAP: Final[Mapping[str, str]] = {
    "PYTHONMALLOC": "malloc",  # pymalloc maps its arenas itself, 1 MB each, and asks for nothing
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_ARENA_MAX": "1",  # one heap to fill; the GIL leaves little to contend for
}
"""As in the Dockerfile."""
_OLDEST_GLIBC: Final = (2, 35)
_SWITCH: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def heap_settings(environ: Mapping[str, str], *, switch: Path = _SWITCH, libc: str | None = None) -> Mapping[str, str]:
    """`HEAP`; nothing where the system gives no huge pages, or where any of it is set already.

    Args:
        environ: What is set.
        switch: The kernel's file that says whether it gives them.
        libc: `glibc 2.36`; None = of this process.
    """
    if any(name in environ for name in HEAP) or _glibc(libc) < _OLDEST_GLIBC:
        return {}
    try:
        is_off = "[never]" in switch.read_text()
    except OSError:
        return {}
    return {} if is_off else HEAP


def _glibc(told: str | None) -> tuple[int, ...]:
    """Its version; (0,) where the C library is another."""
    try:
        name, version = (told if told is not None else os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        return tuple(int(part) for part in version.split(".")) if name == "glibc" else (0,)
    except (ValueError, AttributeError, OSError):  # no such value, or no confstr at all
        return (0,)
