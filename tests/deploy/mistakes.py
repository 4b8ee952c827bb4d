"""Mistakes that people make in manifests, each planted into an overlay that is right, and what the check must say of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Objects = list[dict[str, Any]]


@dataclass(frozen=True)
class Mistake:
    """What is done to an overlay's objects, and a regular expression that one complaint must match."""

    name: str
    plant: Callable[[Objects], object]
    complaint: str
    overlay: str = "prod"


def find(objects: Objects, kind: str, name: str) -> dict[str, Any]:
    """An object by kind and the beginning of its name (a ConfigMap's ends in a hash)."""
    return next(one for one in objects if one["kind"] == kind and one["metadata"]["name"].startswith(name))


def spec(objects: Objects, name: str) -> dict[str, Any]:
    """A Deployment's pod."""
    pod: dict[str, Any] = find(objects, "Deployment", name)["spec"]["template"]["spec"]
    return pod


def box(objects: Objects, name: str) -> dict[str, Any]:
    """A Deployment's container."""
    container: dict[str, Any] = spec(objects, name)["containers"][0]
    return container


def settings(objects: Objects) -> dict[str, str]:
    """The settings of all processes."""
    data: dict[str, str] = find(objects, "ConfigMap", "waybill-settings")["data"]
    return data


def trigger(objects: Objects, name: str) -> dict[str, Any]:
    """A ScaledObject's trigger."""
    found: dict[str, Any] = find(objects, "ScaledObject", name)["spec"]["triggers"][0]
    return found


def without(objects: Objects, kind: str, name: str) -> None:
    """Take an object out."""
    objects.remove(find(objects, kind, name))


def variable(objects: Objects, deployment: str, name: str) -> dict[str, Any]:
    """A variable of a container."""
    found: dict[str, Any] = next(item for item in box(objects, deployment)["env"] if item["name"] == name)
    return found


def renamed(mapping: dict[str, Any], old: str, new: str) -> None:
    """Misspell a key."""
    mapping[new] = mapping.pop(old)


# fmt: off - a table; each line is one mistake
MISTAKES = (
    # The command line and the settings
    Mistake("unknown flag", lambda o: box(o, "worker-anthropic")["args"].append("--turbo"), r"No such option.*--turbo"),
    Mistake("unknown verb", lambda o: box(o, "control").update(args=["controller"]), r"no verb 'controller'"),
    Mistake("flag out of range", lambda o: box(o, "dispatcher")["args"].extend(["--concurrency", "0"]), r"concurrency"),
    Mistake(
        "wrong probe",
        lambda o: box(o, "control")["readinessProbe"]["exec"].update(command=["waybill", "probe", "fine"]),
        r"'fine' is not",
    ),
    Mistake(
        "probe asks the broker",
        lambda o: box(o, "worker-openai")["livenessProbe"]["exec"].update(command=["celery", "inspect", "ping"]),
        r"'celery', which is not in the image",
    ),
    Mistake(
        "misspelt setting",
        lambda o: renamed(settings(o), "WAYBILL_LEASE_S", "WAYBILL_LEASE_SECONDS"),
        r"WAYBILL_LEASE_SECONDS is no setting",
    ),
    Mistake(
        "setting out of range",
        lambda o: settings(o).update(WAYBILL_LEASE_S="1"),
        r"WAYBILL_LEASE_S: .*greater than or equal to 2",
    ),
    Mistake(
        "no heartbeat file", lambda o: settings(o).pop("WAYBILL_HEARTBEAT_FILE"), r"WAYBILL_HEARTBEAT_FILE is not set"
    ),
    Mistake(
        "heartbeat on the read-only root",
        lambda o: settings(o).update(WAYBILL_HEARTBEAT_FILE="/var/heartbeat"),
        r"not in a writable emptyDir",
    ),
    Mistake(
        "broken policy",
        lambda o: find(o, "ConfigMap", "waybill-policy")["data"].update(
            {"policy.toml": 'version = "x"\n[intents.extraction]\nchain = ["claude-haiku-9"]\n'}
        ),
        r"policy",
    ),
    Mistake(
        "policy mounted elsewhere",
        lambda o: variable(o, "dispatcher", "WAYBILL_POLICY_FILE").update(value="/etc/waybill/policy.toml"),
        r"is in no ConfigMap that is mounted",
    ),
    # Secrets
    Mistake(
        "missing secret key",
        lambda o: variable(o, "worker-anthropic", "ANTHROPIC_API_KEY")["valueFrom"]["secretKeyRef"].update(
            key="apikey"
        ),
        r"waybill-anthropic has no key 'apikey'",
    ),
    Mistake(
        "missing secret",
        lambda o: without(o, "ExternalSecret", "waybill-openai"),
        r"nobody makes the Secret 'waybill-openai'",
    ),
    Mistake(
        "key written out",
        lambda o: box(o, "worker-openai")["env"].append({"name": "OPENAI_API_KEY", "value": "sk-1"}),
        r"OPENAI_API_KEY is written out",
    ),
    Mistake(
        "key given to who needs none",
        lambda o: box(o, "dispatcher")["env"].append(variable(o, "worker-openai", "OPENAI_API_KEY")),
        r"holds OPENAI_API_KEY",
    ),
    Mistake(
        "worker without its key",
        lambda o: box(o, "worker-openai")["env"].remove(variable(o, "worker-openai", "OPENAI_API_KEY")),
        r"has no OPENAI_API_KEY",
    ),
    Mistake(
        "missing ledger URL",
        lambda o: box(o, "control")["env"].remove(variable(o, "control", "WAYBILL_DATABASE_URL")),
        r"control needs WAYBILL_DATABASE_URL",
    ),
    # Queues and scaling
    Mistake(
        "queue without worker",
        lambda o: without(o, "Deployment", "worker-local"),
        r"routes to local\.hi, which no worker serves",
    ),
    Mistake(
        "half a queue", lambda o: box(o, "worker-openai")["args"].__setitem__(2, "openai.hi"), r"routes to openai\.lo"
    ),
    Mistake(
        "unknown queue",
        lambda o: box(o, "worker-openai")["args"].__setitem__(2, "openai.hi,openai.low"),
        r"queue 'openai\.low' does not exist",
    ),
    Mistake(
        "provider left out", lambda o: settings(o).update(WAYBILL_PROVIDERS="anthropic,openai"), r"leaves out local"
    ),
    Mistake("no housekeeping", lambda o: without(o, "Deployment", "control"), r"no pod runs waybill control"),
    Mistake(
        "wrong scale target",
        lambda o: find(o, "ScaledObject", "worker-openai")["spec"]["scaleTargetRef"].update(name="openai-worker"),
        r"'openai-worker', which does not exist",
    ),
    Mistake(
        "scaler counts another provider",
        lambda o: trigger(o, "worker-openai")["metadata"].update(
            query=trigger(o, "worker-anthropic")["metadata"]["query"]
        ),
        r"counts jobs of \['anthropic'\]",
    ),
    Mistake(
        "scaler forgets running jobs",
        lambda o: trigger(o, "worker-local")["metadata"].update(
            query=trigger(o, "worker-local")["metadata"]["query"].replace(", 'running'", "")
        ),
        r"does not count running jobs",
    ),
    Mistake(
        "scaler counts a state that is none",
        lambda o: trigger(o, "worker-local")["metadata"].update(
            query=trigger(o, "worker-local")["metadata"]["query"].replace("'routed'", "'routing'")
        ),
        r"'routing', which does not exist",
    ),
    Mistake(
        "worker without scaler",
        lambda o: without(o, "ScaledObject", "worker-openai"),
        r"worker-openai: has no ScaledObject",
    ),
    Mistake(
        "scaler against replicas",
        lambda o: find(o, "Deployment", "worker-local")["spec"].update(replicas=3),
        r"worker-local: says replicas",
    ),
    Mistake(
        "no cap", lambda o: find(o, "ScaledObject", "worker-openai")["spec"].pop("maxReplicaCount"), r"maxReplicaCount"
    ),
    Mistake(
        "scaler without login",
        lambda o: without(o, "TriggerAuthentication", "ledger-login"),
        r"'ledger-login' does not exist",
    ),
    Mistake(
        "misspelt KEDA field",
        lambda o: renamed(trigger(o, "worker-openai")["metadata"], "targetQueryValue", "targetQueryValues"),
        r"targetQueryValue",
    ),
    Mistake(
        "KEDA number where text belongs",
        lambda o: trigger(o, "worker-openai")["metadata"].update(targetQueryValue=200),
        r"is not of type 'string'",
    ),
    Mistake(
        "more connections than Postgres has",
        lambda o: find(o, "Cluster", "waybill-ledger")["spec"]["postgresql"]["parameters"].update(
            max_connections="100"
        ),
        r"max_connections 100 must be",
    ),
    # What Kubernetes would refuse or drop
    Mistake(
        "removed API version",
        lambda o: find(o, "PodDisruptionBudget", "control").update(apiVersion="policy/v1beta1"),
        r"policy/v1beta1/PodDisruptionBudget control: no schema",
    ),
    Mistake(
        "misspelt field",
        lambda o: renamed(spec(o, "control"), "terminationGracePeriodSeconds", "terminationGracePeriod"),
        r"terminationGracePeriod",
    ),
    Mistake(
        "wrong type",
        lambda o: find(o, "Deployment", "control")["spec"].update(replicas="2"),
        r"spec\.replicas: '2' is not of type",
    ),
    Mistake(
        "bad quantity",
        lambda o: box(o, "control")["resources"]["limits"].update(memory="384mb"),
        r"'384mb' is no quantity",
    ),
    Mistake(
        "request above limit",
        lambda o: box(o, "control")["resources"]["requests"].update(memory="1Gi"),
        r"above its limit",
    ),
    Mistake(
        "bad name",
        lambda o: find(o, "PodDisruptionBudget", "control")["metadata"].update(name="Control_Budget"),
        r"not a DNS name",
    ),
    Mistake(
        "selector of nobody",
        lambda o: find(o, "Deployment", "control")["spec"]["selector"]["matchLabels"].update(
            {"app.kubernetes.io/name": "controller"}
        ),
        r"does not match its own pods",
    ),
    Mistake(
        "service of nobody",
        lambda o: find(o, "Service", "waybill-valkey")["spec"]["selector"].update({"app.kubernetes.io/name": "redis"}),
        r"Service/waybill-valkey: selects",
    ),
    Mistake(
        "port by a wrong name",
        lambda o: find(o, "Service", "waybill-valkey")["spec"]["ports"][0].update(targetPort="valkey"),
        r"targetPort 'valkey' is no port",
    ),
    Mistake(
        "missing volume", lambda o: spec(o, "control")["volumes"].pop(), r"mounts volume '\w+', which does not exist"
    ),
    Mistake(
        "missing ConfigMap",
        lambda o: without(o, "ConfigMap", "waybill-settings"),
        r"ConfigMap 'waybill-settings\S+' does not exist",
    ),
    Mistake(
        "host that is no Service",
        lambda o: find(o, "Service", "waybill-sandbox")["metadata"].update(name="sandbox"),
        r"no Service is named 'waybill-sandbox'",
        "dev",
    ),
    # Safety
    Mistake("latest image", lambda o: box(o, "flower").update(image="waybill:latest"), r"needs a fixed tag"),
    Mistake(
        "root user",
        lambda o: spec(o, "flower")["securityContext"].update(runAsUser=0),
        r"runAsUser must be a number that is not 0",
    ),
    Mistake(
        "writable root",
        lambda o: box(o, "flower")["securityContext"].update(readOnlyRootFilesystem=False),
        r"readOnlyRootFilesystem must be true",
    ),
    Mistake(
        "kept capabilities",
        lambda o: box(o, "flower")["securityContext"].pop("capabilities"),
        r"capabilities must drop ALL",
    ),
    Mistake(
        "host path",
        lambda o: spec(o, "flower")["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
        r"hostPath is not allowed",
    ),
    Mistake(
        "token of the API server",
        lambda o: spec(o, "flower").update(automountServiceAccountToken=True),
        r"automountServiceAccountToken",
    ),
    Mistake(
        "gateway with another policy",
        lambda o: box(o, "gateway")["env"].remove(variable(o, "gateway", "WAYBILL_POLICY_FILE")),
        r"gateway: its policy is the one in the image, the dispatcher's is",
    ),
    Mistake("no limits", lambda o: box(o, "worker-anthropic")["resources"].pop("limits"), r"no resources\.limits\.cpu"),
    Mistake(
        "grace shorter than drain",
        lambda o: spec(o, "worker-anthropic").update(terminationGracePeriodSeconds=30),
        r"terminationGracePeriodSeconds 30 is less",
    ),
    Mistake(
        "longer drain, same grace",
        lambda o: settings(o).update(WAYBILL_DRAIN_S="120"),
        r"is less than WAYBILL_DRAIN_S 120",
    ),
    Mistake(
        "budget that blocks nodes",
        lambda o: find(o, "PodDisruptionBudget", "control")["spec"].update(maxUnavailable=0),
        r"can never be drained",
    ),
    Mistake("no budget", lambda o: without(o, "PodDisruptionBudget", "flower"), r"flower: has no PodDisruptionBudget"),
    Mistake(
        "open network", lambda o: without(o, "NetworkPolicy", "default-deny"), r"no NetworkPolicy denies everything"
    ),
    Mistake(
        "worker that cannot reach its provider",
        lambda o: find(o, "Deployment", "worker-openai")["spec"]["template"]["metadata"]["labels"].pop(
            "waybill.dev/provider"
        ),
        r"label waybill\.dev/provider is None",
    ),
    Mistake(
        "way out for who needs none",
        lambda o: find(o, "Deployment", "flower")["spec"]["template"]["metadata"]["labels"].update(
            {"waybill.dev/ledger": "client"}
        ),
        r"label waybill\.dev/ledger is 'client'",
    ),
)
# fmt: on
