"""Pods without Kubernetes: what a container would be given, worked out and given to a process on this machine.

Command and arguments, environment, mounted folders, ports, Service names and probes are those of the rendered manifest.
What differs, because a machine is not a cluster:

- ports become free ones on loopback, in everything that the pod reads; so do the host names of Services;
- Postgres is the embedded one: every postgresql:// URL in a Secret becomes its URL;
- Secrets that an operator would make (External Secrets, CloudNativePG) get stand-in values under the manifest's keys;
- the image's `waybill` is this checkout, its models folder the local lane's cache;
- CPU and memory limits, read-only root, user ids and NetworkPolicies are not enforced (the rules check them).
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from check_deploy_objects import Pod, Rendered

from waybill.cli.up import free_port
from waybill.embedded.binaries import find_valkey
from workers.providers.registry import default_local_model

IMAGE_FOLDERS = {"/opt/waybill/models": str(default_local_model().parent)}
PASSWORD = "stand-in"  # noqa: S105 - opens nothing
POSTGRES_URL = re.compile(r"^postgres(ql)?(\+psycopg)?://")


class RehearsalFailed(Exception):
    """A pod does not do what its manifest promises; one line that names both."""


class Stage:
    """Everything that the pods of one rehearsal share: ports, names, secrets, folders.

    Args:
        rendered: The overlay.
        folder: Scratch space.
        database_url: The embedded ledger, in the form `postgresql://`.
        extra_env: For pods that hold a provider's key: where the stand-in for the provider is.
    """

    def __init__(self, rendered: Rendered, folder: Path, database_url: str, extra_env: Mapping[str, str]) -> None:
        self.rendered = rendered
        self.folder = folder
        self.database_url = database_url
        self.extra_env = extra_env
        self.ports: dict[tuple[str, int], int] = {}
        for pod in rendered.pods:
            for container in pod.containers:
                for port in container.get("ports", []):
                    self.ports[pod.label, int(port["containerPort"])] = free_port()
        self.hosts = dict(self._hosts())
        self.logs = folder / "logs"
        self.logs.mkdir(parents=True)

    def _hosts(self) -> Any:
        for service in self.rendered.of("Service"):
            for pod in self.rendered.pods_with(service["spec"].get("selector", {})):
                for item in service["spec"]["ports"]:
                    number = container_port(pod, item.get("targetPort", item["port"]))
                    address = f"127.0.0.1:{self.ports[pod.label, number]}"
                    yield f"{service['metadata']['name']}:{item['port']}", address

    def secret(self, name: str) -> dict[str, str]:
        """All keys of a Secret with the values that the pods get here."""
        keys = self.rendered.secret_keys(name)
        if keys is None:
            raise RehearsalFailed(f"nobody makes the Secret {name!r}")
        known = self.rendered.secret_values(name)
        found = {key: re.sub(r"\{\{.*?\}\}", PASSWORD, known.get(key, PASSWORD)) for key in keys}
        if any(one["metadata"]["name"] + "-app" == name for one in self.rendered.of("Cluster")):
            found["uri"] = self.database_url
        return {key: self.database_url if POSTGRES_URL.match(value) else value for key, value in found.items()}


def container_port(pod: Pod, port: object) -> int:
    """A port of a pod by name or number."""
    for container in pod.containers:
        for item in container.get("ports", []):
            if port in (item.get("name"), item["containerPort"]):
                return int(item["containerPort"])
    raise RehearsalFailed(f"{pod.label}: has no port {port!r}")


class LocalPod:
    """One pod of a manifest as a process here."""

    def __init__(self, stage: Stage, pod: Pod) -> None:
        self.stage = stage
        self.pod = pod
        self.name = pod.name
        self.container = pod.containers[0]
        self.grace_s = float(pod.spec.get("terminationGracePeriodSeconds", 30))
        self.root = stage.folder / "pods" / pod.name
        self.process: subprocess.Popen[bytes] | None = None
        self.peak_mib = 0.0
        # Where the container's folders are here; longest first, so that a folder in a folder is found.
        self.folders = dict(IMAGE_FOLDERS)
        for mount in self.container.get("volumeMounts", []):
            target = self.root / mount["mountPath"].strip("/")
            target.mkdir(parents=True, exist_ok=True)
            self.folders[mount["mountPath"]] = str(target)
        self._fill_volumes()
        self.env = self._environment()

    def local(self, text: str) -> str:
        """A text of the manifest as it has to read on this machine: hosts, folders, own ports, loopback."""
        table = {**self.stage.hosts, **self.folders, "0.0.0.0": "127.0.0.1"}  # noqa: S104 - taken out, not bound
        for (label, number), here in self.stage.ports.items():
            if label == self.pod.label:
                table[str(number)] = str(here)
        names = "|".join(re.escape(name) for name in sorted(table, key=len, reverse=True))
        return re.sub(rf"(?<![\w.-])({names})(?![\w-])", lambda found: table[found[1]], text)

    def _fill_volumes(self) -> None:
        volumes = {volume["name"]: volume for volume in self.pod.spec.get("volumes", [])}
        for mount in self.container.get("volumeMounts", []):
            volume = volumes.get(mount["name"], {})
            contents: dict[str, str] = {}
            if "configMap" in volume:
                contents = self.stage.rendered.config(volume["configMap"]["name"]) or {}
            elif "secret" in volume:
                contents = self.stage.secret(volume["secret"]["secretName"])
                if "items" in volume["secret"]:
                    contents = {item["path"]: contents[item["key"]] for item in volume["secret"]["items"]}
            for name, text in contents.items():
                (Path(self.folders[mount["mountPath"]]) / name).write_text(self.local(text))

    def _environment(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for source in self.container.get("envFrom", []):
            if "configMapRef" in source:
                found |= self.stage.rendered.config(source["configMapRef"]["name"]) or {}
            else:
                found |= self.stage.secret(source["secretRef"]["name"])
        for item in self.container.get("env", []):
            if "valueFrom" in item:
                reference = item["valueFrom"]["secretKeyRef"]
                values = self.stage.secret(reference["name"])
                if reference["key"] not in values:
                    raise RehearsalFailed(
                        f"{self.pod.label}: Secret {reference['name']} has no key {reference['key']!r}"
                    )
                found[item["name"]] = values[reference["key"]]
            else:
                found[item["name"]] = str(item.get("value", ""))
        found = {name: self.local(value) for name, value in found.items()}
        if {"ANTHROPIC_API_KEY", "OPENAI_API_KEY"} & set(found):
            found = {**self.stage.extra_env, **found}
        home = self.root / "nothing-is-written-here"
        home.mkdir(parents=True, exist_ok=True)
        return {
            **found,
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "TMPDIR": self.folders.get("/tmp", str(home)),  # noqa: S108 - the pod's, not this machine's
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def argv(self, command: Sequence[object], args: Sequence[object] = ()) -> list[str]:
        """A command of the container as one of this machine."""
        words = [self.local(str(word)) for word in [*command, *args]]
        if words[0] == "waybill":
            return [sys.executable, "-m", "waybill", *words[1:]]
        if words[0] == "valkey-server":
            return [str(find_valkey()), *words[1:], "--bind", "127.0.0.1"]
        raise RehearsalFailed(f"{self.pod.label}: no program {words[0]!r} in the image")

    def start(self) -> None:
        """Start the container's process."""
        argv = self.argv(self.container.get("command", ["waybill"]), self.container.get("args", []))
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                argv, env=self.env, cwd=self.env["HOME"], stdout=log, stderr=log, start_new_session=True
            )

    @property
    def log_path(self) -> Path:
        """Where its lines go."""
        return self.stage.logs / f"{self.name}.log"

    def last_words(self) -> str:
        """Its last line."""
        lines = self.log_path.read_text(errors="replace").strip().splitlines() if self.log_path.exists() else []
        return lines[-1] if lines else "it said nothing"

    def probe(self, kind: str) -> str | None:
        """Run a probe of the manifest once: None when it passes (or there is none), else what it said."""
        how = self.container.get(kind)
        if how is None:
            return None
        if "exec" in how:
            done = subprocess.run(
                self.argv(how["exec"]["command"]), env=self.env, capture_output=True, text=True, check=False
            )
            return None if done.returncode == 0 else (done.stdout or done.stderr).strip()
        action = how.get("httpGet") or how["tcpSocket"]
        port = self.stage.ports[self.pod.label, container_port(self.pod, action["port"])]
        try:
            if "tcpSocket" in how:
                socket.create_connection(("127.0.0.1", port), timeout=2).close()
                return None
            connection = HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", action.get("path", "/"))
            status = connection.getresponse().status
            connection.close()
        except (OSError, HTTPException) as exc:
            return f"port {action['port']}: {exc}"
        return None if 200 <= status < 400 else f"GET {action.get('path')} answers {status}"

    def until(self, kind: str, timeout_s: float) -> float:
        """Wait until a probe passes; the seconds that it took.

        Raises:
            RehearsalFailed: The process ended, or the time is over.
        """
        began_s = time.monotonic()
        while (said := self.probe(kind)) is not None:
            if self.process is not None and self.process.poll() is not None:
                raise RehearsalFailed(
                    f"{self.pod.label}: ended with {self.process.returncode} at its start: {self.last_words()}"
                )
            if time.monotonic() - began_s > timeout_s:
                raise RehearsalFailed(f"{self.pod.label}: {kind} does not pass within {timeout_s:.0f} s: {said}")
            time.sleep(0.3)
        return time.monotonic() - began_s

    def startup_s(self) -> float:
        """How long Kubernetes would wait for its start."""
        how = self.container.get("startupProbe") or self.container.get("readinessProbe") or {}
        return (
            float(how.get("periodSeconds", 10) * how.get("failureThreshold", 3))
            if "startupProbe" in self.container
            else 60.0
        )

    def terminate(self) -> None:
        """Send SIGTERM, as Kubernetes does; `ended` waits."""
        self.note_memory()
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def ended(self, began_s: float) -> float:
        """Wait for the end within the grace period; the seconds since `began_s` (monotonic).

        Raises:
            RehearsalFailed: It had to be killed, or ended with an error.
        """
        assert self.process is not None
        try:
            code = self.process.wait(timeout=max(0.1, began_s + self.grace_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise RehearsalFailed(
                f"{self.pod.label}: had to be killed after its {self.grace_s:.0f} s of grace"
            ) from None
        if code not in (0, -signal.SIGTERM):
            raise RehearsalFailed(f"{self.pod.label}: ended with {code} after SIGTERM: {self.last_words()}")
        return time.monotonic() - began_s

    def note_memory(self) -> None:
        """Remember the most memory that it ever had (Linux)."""
        if self.process is None or self.process.poll() is not None:
            return
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:  # macOS, or it has just ended
            return
        if found := re.search(r"VmHWM:\s+(\d+) kB", status):
            self.peak_mib = max(self.peak_mib, int(found[1]) / 1024)

    def kill(self) -> None:
        """End it whatever it does."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def strays(self) -> list[str]:
        """Files that it wrote where a read-only root would have refused."""
        home = Path(self.env["HOME"])
        return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())
