"""Rules that any namespace could keep: names, quantities, references, selectors, ports, the restricted pod standard."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any

from check_deploy_objects import Pod, Rendered

NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?")
SCALE = {"m": "0.001", "k": "1e3", "M": "1e6", "G": "1e9", "T": "1e12", "P": "1e15"} | {
    f"{letter}i": str(1024**power) for power, letter in enumerate("KMGTP", start=1)
}
CLUSTER_WIDE = ("Namespace", "ClusterSecretStore")
OUTSIDE_LABELS = ("waybill.dev/producer",)
"""Carried by pods of other teams; that nobody here has them is no mistake."""


def names_are_right(rendered: Rendered) -> Iterator[str]:
    """Names are DNS names, objects are there once and in one namespace."""
    seen = Counter((one["kind"], one["metadata"]["name"]) for one in rendered.objects)
    for (kind, name), count in seen.items():
        if not NAME.fullmatch(str(name)):
            yield f"{kind}/{name}: not a DNS name (a-z, 0-9, - and .)"
        if count > 1:
            yield f"{kind}/{name}: is there {count} times"
    spaces = {one["metadata"].get("namespace") for one in rendered.objects if one["kind"] not in CLUSTER_WIDE}
    if len(spaces) > 1:
        yield f"objects are in several namespaces: {', '.join(sorted(str(space) for space in spaces))}"


def images_are_pinned(rendered: Rendered) -> Iterator[str]:
    """Every image has a tag, and not one that moves."""
    for pod in rendered.pods:
        for container in pod.containers:
            image = str(container.get("image", ""))
            tag = image.rpartition("/")[2].partition(":")[2]
            if not image:
                yield f"{pod.label}: container {container['name']} has no image"
            elif "@sha256:" not in image and (not tag or tag == "latest"):
                yield f"{pod.label}: image {image!r} needs a fixed tag"


def amount(text: object) -> Decimal | None:
    """A quantity as a number, None when it is none."""
    found = QUANTITY.fullmatch(str(text))
    return None if found is None else Decimal(found[1]) * Decimal(SCALE.get(found[2] or "", "1"))


def resources_are_bounded(rendered: Rendered) -> Iterator[str]:
    """Every container asks for processor and memory and has a limit of both; storage asks for a real amount."""
    for pod in rendered.pods:
        for container in pod.containers:
            have = container.get("resources", {})
            for kind in ("cpu", "memory"):
                wanted, limit = (have.get(part, {}).get(kind) for part in ("requests", "limits"))
                for part, value in (("requests", wanted), ("limits", limit)):
                    if value is None:
                        yield f"{pod.label}: container {container['name']} has no resources.{part}.{kind}"
                    elif amount(value) is None:
                        yield f"{pod.label}: resources.{part}.{kind} {value!r} is no quantity"
                asked, most = amount(wanted), amount(limit)
                if asked is not None and most is not None and asked > most:
                    yield f"{pod.label}: asks for {kind} {wanted}, above its limit {limit}"
        for volume in pod.spec.get("volumes", []):
            size = volume.get("emptyDir", {}).get("sizeLimit") if "emptyDir" in volume else None
            if size is not None and amount(size) is None:
                yield f"{pod.label}: emptyDir {volume['name']}: sizeLimit {size!r} is no quantity"
    for one in rendered.of("Cluster"):
        if amount(one["spec"].get("storage", {}).get("size")) is None:
            yield f"Cluster/{one['metadata']['name']}: storage.size is no quantity"


def selectors_match(rendered: Rendered) -> Iterator[str]:
    """Whoever selects pods selects some: Deployments their own, Services, budgets and network rules those they mean."""
    clusters = [{"cnpg.io/cluster": one["metadata"]["name"]} for one in rendered.of("Cluster")]

    def nobody(labels: Mapping[str, str]) -> bool:
        return not rendered.pods_with(labels) and not any(labels.items() <= known.items() for known in clusters)

    for pod in rendered.pods:
        chosen = pod.owner["spec"].get("selector", {}).get("matchLabels", {})
        if not chosen.items() <= pod.labels.items():
            yield f"{pod.label}: its selector {chosen} does not match its own pods"
        elif chosen and len(rendered.pods_with(chosen)) > 1:
            yield f"{pod.label}: its selector {chosen} matches pods of others, too"
    for one in rendered.of("Service", "PodDisruptionBudget", "NetworkPolicy", "PodMonitor"):
        label, spec = f"{one['kind']}/{one['metadata']['name']}", one["spec"]
        chosen = spec.get("selector", {}) if one["kind"] == "Service" else _match_labels(spec)
        if chosen and nobody(chosen):
            yield f"{label}: selects {chosen}, which no pod has"
        for rule in [*spec.get("ingress", []), *spec.get("egress", [])]:
            for peer in [*rule.get("from", []), *rule.get("to", [])]:
                labels = peer.get("podSelector", {}).get("matchLabels", {})
                if labels and not set(labels) & set(OUTSIDE_LABELS) and nobody(labels):
                    yield f"{label}: names pods {labels}, which nobody is"


def _match_labels(spec: Mapping[str, Any]) -> dict[str, str]:
    chosen: dict[str, str] = (spec.get("podSelector") or spec.get("selector") or {}).get("matchLabels", {})
    return chosen


def budgets_let_nodes_go(rendered: Rendered) -> Iterator[str]:
    """Every Deployment of the fleet has a disruption budget, and none blocks a node's drain for ever."""
    budgets = rendered.of("PodDisruptionBudget")
    for one in budgets:
        if str(one["spec"].get("maxUnavailable")) in ("0", "0%") or "minAvailable" in one["spec"]:
            yield f"PodDisruptionBudget/{one['metadata']['name']}: write maxUnavailable: 1, or a node can never be drained"
    for pod in rendered.pods:
        if pod.owner["kind"] != "Deployment" or pod.name == "sandbox":
            continue
        if not any(_match_labels(one["spec"]).items() <= pod.labels.items() for one in budgets):
            yield f"{pod.label}: has no PodDisruptionBudget"


def ports_have_names(rendered: Rendered) -> Iterator[str]:
    """Services and probes name ports that the container has; network rules let in on those ports only."""
    for one in rendered.of("Service"):
        for pod in rendered.pods_with(one["spec"].get("selector", {})):
            for item in one["spec"].get("ports", []):
                if item.get("targetPort") not in _ports(pod):
                    yield f"Service/{one['metadata']['name']}: targetPort {item.get('targetPort')!r} is no port of {pod.label}"
    for pod in rendered.pods:
        for container in pod.containers:
            for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
                for how in ("httpGet", "tcpSocket"):
                    port = container.get(kind, {}).get(how, {}).get("port")
                    if port is not None and port not in _ports(pod):
                        yield f"{pod.label}: {kind} asks port {port!r}, which the container does not have"
    for one in rendered.of("NetworkPolicy"):
        chosen = _match_labels(one["spec"])
        for pod in rendered.pods_with(chosen) if chosen else []:
            for rule in one["spec"].get("ingress", []):
                for item in rule.get("ports", []):
                    if item.get("port") not in _ports(pod):
                        yield f"NetworkPolicy/{one['metadata']['name']}: opens {item.get('port')} of {pod.label}, which listens elsewhere"


def _ports(pod: Pod) -> set[object]:
    ports = [port for container in pod.containers for port in container.get("ports", [])]
    return {port.get("name") for port in ports} | {port.get("containerPort") for port in ports}


def references_exist(rendered: Rendered) -> Iterator[str]:
    """Secrets, ConfigMaps, accounts and volumes that a pod names are there, with the keys it names."""
    for pod in rendered.pods:
        account = pod.spec.get("serviceAccountName")
        if account is not None and rendered.named("ServiceAccount", account) is None:
            yield f"{pod.label}: ServiceAccount {account!r} does not exist"
        volumes = {volume["name"] for volume in pod.spec.get("volumes", [])}
        volumes |= {claim["metadata"]["name"] for claim in pod.owner["spec"].get("volumeClaimTemplates", [])}
        for volume in pod.spec.get("volumes", []):
            if "secret" in volume:
                keys = [item["key"] for item in volume["secret"].get("items", [])]
                yield from _secret(rendered, pod, volume["secret"]["secretName"], keys)
            if "configMap" in volume:
                keys = [item["key"] for item in volume["configMap"].get("items", [])]
                yield from _config(rendered, pod, volume["configMap"]["name"], keys)
        for container in pod.containers:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"{pod.label}: mounts volume {mount['name']!r}, which does not exist"
            for source in container.get("envFrom", []):
                if "secretRef" in source:
                    yield from _secret(rendered, pod, source["secretRef"]["name"], ())
                if "configMapRef" in source:
                    yield from _config(rendered, pod, source["configMapRef"]["name"], ())
            for item in container.get("env", []):
                origin = item.get("valueFrom", {})
                if "secretKeyRef" in origin:
                    yield from _secret(rendered, pod, origin["secretKeyRef"]["name"], [origin["secretKeyRef"]["key"]])
                if "configMapKeyRef" in origin:
                    reference = origin["configMapKeyRef"]
                    yield from _config(rendered, pod, reference["name"], [reference["key"]])


def _secret(rendered: Rendered, pod: Pod, name: str, keys: Any) -> Iterator[str]:
    have = rendered.secret_keys(name)
    if have is None:
        yield f"{pod.label}: nobody makes the Secret {name!r}"
        return
    yield from (f"{pod.label}: Secret {name} has no key {key!r}" for key in keys if key not in have)


def _config(rendered: Rendered, pod: Pod, name: str, keys: Any) -> Iterator[str]:
    have = rendered.config(name)
    if have is None:
        yield f"{pod.label}: ConfigMap {name!r} does not exist"
        return
    yield from (f"{pod.label}: ConfigMap {name} has no key {key!r}" for key in keys if key not in have)


def pods_are_restricted(rendered: Rendered) -> Iterator[str]:
    """The pod security standard "restricted", and beyond it: read-only root, no token, no shared host."""
    for pod in rendered.pods:
        whole = pod.spec.get("securityContext", {})
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.label}: automountServiceAccountToken must be false"
        for name in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.spec.get(name):
                yield f"{pod.label}: {name} is not allowed"
        yield from (
            f"{pod.label}: volume {volume['name']}: hostPath is not allowed"
            for volume in pod.spec.get("volumes", [])
            if "hostPath" in volume
        )
        for container in pod.containers:
            own = {**{k: v for k, v in whole.items() if k != "fsGroup"}, **container.get("securityContext", {})}
            wanted = {"runAsNonRoot": True, "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True}
            for name, value in wanted.items():
                if own.get(name) is not value:
                    yield f"{pod.label}: container {container['name']}: {name} must be {str(value).lower()}"
            if not isinstance(own.get("runAsUser"), int) or own["runAsUser"] == 0:
                yield f"{pod.label}: container {container['name']}: runAsUser must be a number that is not 0"
            if own.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
                yield f"{pod.label}: container {container['name']}: seccompProfile.type must be RuntimeDefault"
            if "ALL" not in own.get("capabilities", {}).get("drop", []) or own["capabilities"].get("add"):
                yield f"{pod.label}: container {container['name']}: capabilities must drop ALL and add none"
            if own.get("privileged"):
                yield f"{pod.label}: container {container['name']}: privileged is not allowed"


def network_is_closed(rendered: Rendered) -> Iterator[str]:
    """A rule for all pods denies what no other allows."""
    for one in rendered.of("NetworkPolicy"):
        spec = one["spec"]
        closes = set(spec.get("policyTypes", [])) == {"Ingress", "Egress"} and not {"ingress", "egress"} & set(spec)
        if not spec.get("podSelector") and closes:
            return
    yield "no NetworkPolicy denies everything to all pods (podSelector {}, policyTypes [Ingress, Egress], no rules)"


RULES: tuple[Callable[[Rendered], Iterator[str]], ...] = (
    names_are_right,
    images_are_pinned,
    resources_are_bounded,
    selectors_match,
    budgets_let_nodes_go,
    ports_have_names,
    references_exist,
    pods_are_restricted,
    network_is_closed,
)
