"""Reads rendered objects: pods, environments, secrets and their keys, labels. Decides nothing."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]

OUR_IMAGES = ("waybill", "waybill-local")
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job")
CNPG_SECRET_KEYS = ("uri", "username", "user", "password", "host", "port", "dbname", "pgpass")
"""Of the Secret `<cluster>-app` that CloudNativePG makes."""


@dataclass(frozen=True)
class Pod:
    """A pod template and who owns it."""

    owner: Object
    labels: Mapping[str, str]
    spec: Mapping[str, Any]

    @property
    def label(self) -> str:
        """Kind and name, for complaints."""
        return f"{self.owner['kind']}/{self.owner['metadata']['name']}"

    @property
    def name(self) -> str:
        """The owner's name."""
        return str(self.owner["metadata"]["name"])

    @property
    def containers(self) -> Sequence[Mapping[str, Any]]:
        """All containers, those that run first included."""
        return [*self.spec.get("initContainers", []), *self.spec.get("containers", [])]


class Rendered:
    """What an overlay renders to."""

    def __init__(self, objects: Sequence[Object]) -> None:
        self.objects = list(objects)
        self.pods = [
            Pod(one, one["spec"]["template"]["metadata"].get("labels", {}), one["spec"]["template"]["spec"])
            for one in objects
            if one["kind"] in WORKLOADS
        ]

    def of(self, *kinds: str) -> list[Object]:
        """The objects of these kinds."""
        return [one for one in self.objects if one["kind"] in kinds]

    def named(self, kind: str, name: str) -> Object | None:
        """An object, None when there is none of that name."""
        return next((one for one in self.of(kind) if one["metadata"]["name"] == name), None)

    def pods_with(self, labels: Mapping[str, str]) -> list[Pod]:
        """The pods that carry all these labels."""
        return [pod for pod in self.pods if labels.items() <= pod.labels.items()]

    def secret_keys(self, name: str) -> set[str] | None:
        """The keys of a Secret, whoever makes it; None when nobody does."""
        for one in self.of("Secret"):
            if one["metadata"]["name"] == name:
                return {*one.get("data", {}), *one.get("stringData", {})}
        for one in self.of("ExternalSecret"):
            target = one["spec"]["target"]
            if target["name"] == name:
                return set(target.get("template", {}).get("data", {})) or {d["secretKey"] for d in one["spec"]["data"]}
        for one in self.of("Cluster"):
            if f"{one['metadata']['name']}-app" == name:
                return set(CNPG_SECRET_KEYS)
        return None

    def secret_values(self, name: str) -> dict[str, str]:
        """What is known here of a Secret: its texts, or an ExternalSecret's templates."""
        for one in self.of("Secret"):
            if one["metadata"]["name"] == name:
                decoded = {k: base64.b64decode(v).decode() for k, v in one.get("data", {}).items()}
                return {**decoded, **one.get("stringData", {})}
        for one in self.of("ExternalSecret"):
            if one["spec"]["target"]["name"] == name:
                return dict(one["spec"]["target"].get("template", {}).get("data", {}))
        return {}

    def config(self, name: str) -> dict[str, str] | None:
        """The data of a ConfigMap, None when there is none of that name."""
        one = self.named("ConfigMap", name)
        return None if one is None else dict(one.get("data", {}))


def is_ours(container: Mapping[str, Any]) -> bool:
    """Whether the container runs the waybill command."""
    return image_name(container) in OUR_IMAGES


def image_name(container: Mapping[str, Any]) -> str:
    """The last part of the image's name, without tag and digest."""
    return str(container.get("image", "")).partition("@")[0].rpartition("/")[2].partition(":")[0]


def environment(rendered: Rendered, container: Mapping[str, Any]) -> dict[str, str]:
    """What the process would find: ConfigMaps, then its own. A value that only a Secret knows is `secret:NAME/KEY`."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        if "configMapRef" in source:
            found |= rendered.config(source["configMapRef"]["name"]) or {}
        else:
            name = source["secretRef"]["name"]
            found |= {key: f"secret:{name}/{key}" for key in rendered.secret_keys(name) or ()}
    for item in container.get("env", []):
        origin = item.get("valueFrom", {})
        if "secretKeyRef" in origin:
            found[item["name"]] = f"secret:{origin['secretKeyRef']['name']}/{origin['secretKeyRef']['key']}"
        elif "configMapKeyRef" in origin:
            reference = origin["configMapKeyRef"]
            found[item["name"]] = (rendered.config(reference["name"]) or {}).get(reference["key"], "")
        else:
            found[item["name"]] = str(item.get("value", ""))
    return found


def option(args: Sequence[str], name: str) -> str | None:
    """The value after an option of a command line."""
    return next((args[index + 1] for index, arg in enumerate(args[:-1]) if arg == name), None)


def queues_of(container: Mapping[str, Any]) -> list[str]:
    """The queues that a worker's command line names."""
    args = [str(arg) for arg in container.get("args", [])]
    if not args or args[0] != "worker":
        return []
    return [queue.strip() for queue in (option(args, "--queues") or "").split(",") if queue.strip()]


def workers(rendered: Rendered) -> Iterator[tuple[Pod, Mapping[str, Any], list[str]]]:
    """Each worker with its container and queues."""
    for pod in rendered.pods:
        for container in pod.containers:
            if is_ours(container) and container.get("args", [""])[0] == "worker":
                yield pod, container, queues_of(container)
