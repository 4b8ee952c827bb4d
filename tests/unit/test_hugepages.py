"""When a fleet's processes are told to keep their heap in huge pages, and that they then do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from waybill.hugepages import HEAP, heap_settings


@pytest.fixture
def switch(tmp_path: Path) -> Path:
    """A kernel that gives huge pages to those that ask."""
    path = tmp_path / "enabled"
    path.write_text("always [madvise] never\n")
    return path


def test_they_are_asked_for_where_the_system_has_them(switch: Path) -> None:
    assert heap_settings({"PATH": "/bin"}, switch=switch, libc="glibc 2.36") == HEAP
    switch.write_text("[always] madvise never\n")
    assert heap_settings({}, switch=switch, libc="glibc 2.41") == HEAP


@pytest.mark.parametrize("libc", ["glibc 2.34", "musl 1.2", "", "glibc two"])
def test_an_older_or_other_c_library_is_left_alone(switch: Path, libc: str) -> None:
    assert heap_settings({}, switch=switch, libc=libc) == {}


def test_a_kernel_without_them_is_left_alone(switch: Path) -> None:
    switch.write_text("always madvise [never]\n")
    assert heap_settings({}, switch=switch, libc="glibc 2.36") == {}
    assert heap_settings({}, switch=switch.with_name("missing"), libc="glibc 2.36") == {}


@pytest.mark.parametrize("name", sorted(HEAP))
def test_what_somebody_has_set_stays(switch: Path, name: str) -> None:
    assert heap_settings({name: "mine"}, switch=switch, libc="glibc 2.36") == {}


@pytest.mark.skipif(not heap_settings({}), reason="this system gives no huge pages")
def test_a_process_started_so_has_its_heap_in_them() -> None:
    look = "kept = [str(n) for n in range(300_000)]; print(open('/proc/self/smaps_rollup').read())"
    own = {name: value for name, value in os.environ.items() if name not in HEAP}

    def huge_kb(env: dict[str, str]) -> int:
        told = subprocess.run([sys.executable, "-c", look], env=env, capture_output=True, text=True, check=True).stdout
        return next(int(line.split()[1]) for line in told.splitlines() if line.startswith("AnonHugePages"))

    assert huge_kb({**own, **HEAP}) > huge_kb(own) + 8_000  # of some 20 MB


def test_the_image_says_the_same() -> None:
    dockerfile = (Path(__file__).parents[2] / "Dockerfile").read_text()
    for name, value in HEAP.items():
        assert f" {name}={value}" in dockerfile
