"""What no schema can know: that the objects of an overlay fit each other, and fit Waybill's code.

Each rule takes the rendered overlay and yields one line for each thing that is wrong: the object, what it says, and what to
write. Rules about pods in general are in check_deploy_pods.py.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import click
from check_deploy_objects import Pod, Rendered, environment, is_ours, queues_of, workers
from pydantic import SecretStr

from policies.policyfile import parse
from waybill.cli import cli
from waybill.contract import JobState
from waybill.errors import ConfigError
from waybill.ledger.engine import Ledger
from waybill.names import BATCH_PROVIDERS, BATCH_QUEUE, CLASSES, DISPATCH_QUEUE, all_queues, provider_queue
from waybill.settings import FOREIGN_NAMES, Settings

AFTER_DRAIN_S = 15
"""Between the end of the drain and SIGKILL: last rows, farewells, the interpreter's exit (seen: under 2 s)."""
CONNECTIONS_KEPT_FREE = 20
"""Of Postgres: for the operator, KEDA, producers and a person with psql."""
CONTROL_CONNECTIONS = 2 + 5
KEY_OF = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY"}


def _providers(queues: Iterable[str]) -> set[str]:
    """Whom the workers of these queues call."""
    names: set[str] = set()
    for queue in queues:
        names |= set(BATCH_PROVIDERS) if queue == BATCH_QUEUE else {queue.partition(".")[0]}
    return names


Rule = Callable[[Rendered], Iterator[str]]


def _fleet(rendered: Rendered) -> Iterator[tuple[Pod, Mapping[str, Any]]]:
    for pod in rendered.pods:
        for container in pod.containers:
            if is_ours(container):
                yield pod, container


def command_lines_parse(rendered: Rendered) -> Iterator[str]:
    """Every command line, the probes' included, is understood by the real `waybill` command."""
    for pod, container in _fleet(rendered):
        if container.get("command"):
            yield f"{pod.label}: command {container['command']} replaces the image's entry point; use args"
        lines = [[str(arg) for arg in container.get("args", [])]]
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            command = container.get(kind, {}).get("exec", {}).get("command")
            if command is not None and command[0] != "waybill":
                yield f"{pod.label}: {kind} runs {command[0]!r}, which is not in the image; use waybill probe"
            elif command is not None:
                lines.append([str(part) for part in command[1:]])
        known = environment(rendered, container)
        for line in lines:
            complaint = _refusal(line, known)
            if complaint is not None:
                yield f"{pod.label}: waybill {' '.join(line)}: {complaint}"


def _refusal(line: Sequence[str], env: Mapping[str, str]) -> str | None:
    """Why click refuses a command line; None when it does not. Nothing is run."""
    with patch.dict(os.environ, env, clear=False):
        command: click.Command = cli
        rest = list(line)
        try:
            while isinstance(command, click.Group):
                if not rest:
                    return "names no verb"
                found = command.get_command(click.Context(command), rest[0])
                if found is None:
                    return f"there is no verb {rest[0]!r}"
                command, rest = found, rest[1:]
            command.make_context(command.name, rest)
        except click.ClickException as exc:
            return exc.format_message()
    return None


def settings_are_accepted(rendered: Rendered) -> Iterator[str]:
    """Every variable is one that Waybill reads, and every value is one that it takes."""
    known = {Settings.variable(name) for name in Settings.model_fields}
    for pod, container in _fleet(rendered):
        env = environment(rendered, container)
        for name in sorted(set(env) - known):
            if name.startswith("WAYBILL_") or name in FOREIGN_NAMES.values() or name.endswith("_API_KEY"):
                yield f"{pod.label}: {name} is no setting of Waybill"
        readable = {name: value for name, value in env.items() if not value.startswith("secret:")}
        try:
            Settings.from_env(readable)
        except ConfigError as exc:
            yield f"{pod.label}: {exc}"


def settings_are_complete(rendered: Rendered) -> Iterator[str]:
    """Each verb has what it cannot start without."""
    needed = {
        "dispatcher": ("WAYBILL_DATABASE_URL", "WAYBILL_REDIS_URL", "WAYBILL_PROVIDERS"),
        "worker": ("WAYBILL_DATABASE_URL", "WAYBILL_REDIS_URL"),
        "control": ("WAYBILL_DATABASE_URL", "WAYBILL_REDIS_URL"),
        "flower": ("WAYBILL_REDIS_URL", "WAYBILL_FLOWER_PASSWORD"),
        "db": ("WAYBILL_DATABASE_URL",),
    }
    for pod, container in _fleet(rendered):
        verb = str((container.get("args") or [""])[0])
        env = environment(rendered, container)
        for name in needed.get(verb, ()):
            if not env.get(name):
                yield f"{pod.label}: waybill {verb} needs {name}, which is not set"
        for provider in sorted(_providers(queues_of(container))):
            key = KEY_OF.get(provider)
            if key is not None and not env.get(key):
                yield f"{pod.label}: serves {', '.join(queues_of(container))}, but has no {key}"


def secrets_stay_secret(rendered: Rendered) -> Iterator[str]:
    """A password or key comes from a Secret, and only who needs a provider's key has it."""
    secret = {Settings.variable(name) for name, field in Settings.model_fields.items() if _is_secret(field.annotation)}
    for pod, container in _fleet(rendered):
        env = environment(rendered, container)
        for name in sorted(secret & set(env)):
            if not env[name].startswith("secret:"):
                yield f"{pod.label}: {name} is written out; take it from a Secret (valueFrom.secretKeyRef)"
        served = _providers(queues_of(container))
        for provider, key in KEY_OF.items():
            if key in env and provider not in served:
                yield f"{pod.label}: holds {key}, which only the workers of {provider} need"


def _is_secret(annotation: Any) -> bool:
    return annotation is SecretStr or SecretStr in getattr(annotation, "__args__", ())


def queues_have_workers(rendered: Rendered) -> Iterator[str]:
    """Every queue to which the dispatcher routes is served, and no other is named."""
    existing = set(all_queues()) - {DISPATCH_QUEUE}
    served: set[str] = set()
    for pod, _, queues in workers(rendered):
        for queue in queues:
            if queue not in existing:
                yield f"{pod.label}: queue {queue!r} does not exist; there are {', '.join(sorted(existing))}"
        if len({queue.partition(".")[0] for queue in queues}) > 1:
            yield f"{pod.label}: serves several providers; one Deployment for each, so that an outage stays at home"
        served |= set(queues)
    for verb in ("dispatcher", "control"):
        if not any((container.get("args") or [""])[0] == verb for _, container in _fleet(rendered)):
            yield f"no pod runs waybill {verb}; without it no job moves"
    for pod, container in _fleet(rendered):
        if (container.get("args") or [""])[0] != "dispatcher":
            continue
        wanted = [name for name in environment(rendered, container).get("WAYBILL_PROVIDERS", "").split(",") if name]
        for provider in wanted:
            missing = {provider_queue(provider, klass) for klass in CLASSES} - served
            for queue in sorted(missing):
                yield f"{pod.label}: routes to {queue}, which no worker serves; add a Deployment or change WAYBILL_PROVIDERS"
        if set(wanted) & set(BATCH_PROVIDERS) and BATCH_QUEUE not in served:
            yield f"{pod.label}: routes to {BATCH_QUEUE}, which no worker serves; add a Deployment"
        for provider in sorted({queue.partition(".")[0] for queue in served & existing - {BATCH_QUEUE}} - set(wanted)):
            yield f"{pod.label}: WAYBILL_PROVIDERS leaves out {provider}, whose workers would wait for ever"


def scalers_fit(rendered: Rendered) -> Iterator[str]:
    """Where KEDA is used, every worker has a scaler that counts its own provider's jobs, and a cap."""
    scalers = rendered.of("ScaledObject")
    if not scalers:
        return
    states = {state.value for state in JobState}
    targets: dict[str, str] = {}
    for scaler in scalers:
        spec, name = scaler["spec"], f"ScaledObject/{scaler['metadata']['name']}"
        target = spec.get("scaleTargetRef", {}).get("name", "")
        deployment = rendered.named("Deployment", target)
        if deployment is None:
            yield f"{name}: scales Deployment {target!r}, which does not exist"
            continue
        if target in targets:
            yield f"{name}: scales {target}, which {targets[target]} scales already"
        targets[target] = name
        if "replicas" in deployment["spec"]:
            yield f"Deployment/{target}: says replicas, which every apply would set against {name}"
        if spec.get("minReplicaCount", 0) > spec.get("maxReplicaCount", 100):
            yield f"{name}: minReplicaCount is above maxReplicaCount"
        if "maxReplicaCount" not in spec:
            yield f"{name}: has no maxReplicaCount; more pods than the provider's limit feeds only wait"
        served = {
            queue.partition(".")[0] for pod, _, queues in workers(rendered) if pod.name == target for queue in queues
        }
        for trigger in spec.get("triggers", []):
            query = str(trigger.get("metadata", {}).get("query", ""))
            counted = set(re.findall(r"provider = '(\w+)'", query))
            if counted != served:
                yield f"{name}: counts jobs of {sorted(counted)}, but {target} serves {sorted(served)}"
            named = re.findall(r"'(\w+)'", re.sub(r"provider = '\w+'", "", query))
            for state in named:
                if state not in states:
                    yield f"{name}: counts jobs in state {state!r}, which does not exist"
            for state in ("queued", "routed", "running"):
                if state not in named:
                    yield f"{name}: does not count {state} jobs; a busy fleet would be scaled down"
            reference = trigger.get("authenticationRef", {}).get("name", "")
            if rendered.named("TriggerAuthentication", reference) is None:
                yield f"{name}: TriggerAuthentication {reference!r} does not exist"
    for login in rendered.of("TriggerAuthentication"):
        for item in login["spec"].get("secretTargetRef", []):
            if item["key"] not in (rendered.secret_keys(item["name"]) or ()):
                yield f"TriggerAuthentication/{login['metadata']['name']}: Secret {item['name']} has no key {item['key']}"
    for pod, _, queues in workers(rendered):
        # A batch worker waits for providers; more of them would not be quicker.
        if pod.name not in targets and queues != [BATCH_QUEUE]:
            yield f"{pod.label}: has no ScaledObject, while other workers have one"


def drains_fit(rendered: Rendered) -> Iterator[str]:
    """Kubernetes waits longer than a worker drains."""
    for pod, container in _fleet(rendered):
        if (container.get("args") or [""])[0] not in ("worker", "dispatcher", "control"):
            continue
        drain_s = float(environment(rendered, container).get("WAYBILL_DRAIN_S") or Settings().drain_s)
        grace_s = pod.spec.get("terminationGracePeriodSeconds", 30)
        if grace_s < drain_s + AFTER_DRAIN_S:
            yield (
                f"{pod.label}: terminationGracePeriodSeconds {grace_s} is less than WAYBILL_DRAIN_S {drain_s:g}"
                f" + {AFTER_DRAIN_S}; paid calls would be killed"
            )


def heartbeats_fit(rendered: Rendered) -> Iterator[str]:
    """The heartbeat file is in a writable place, and the probes are there and ask nobody else."""
    for pod, container in _fleet(rendered):
        if (container.get("args") or [""])[0] not in ("worker", "dispatcher", "control"):
            continue
        path = environment(rendered, container).get("WAYBILL_HEARTBEAT_FILE", "")
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        holding = [m for m in container.get("volumeMounts", []) if path.startswith(m["mountPath"].rstrip("/") + "/")]
        if not path:
            yield f"{pod.label}: WAYBILL_HEARTBEAT_FILE is not set; the probes have nothing to look at"
        elif not any("emptyDir" in volumes.get(m["name"], {}) and not m.get("readOnly") for m in holding):
            yield f"{pod.label}: {path} is not in a writable emptyDir"
        for kind, question in (("startupProbe", "live"), ("livenessProbe", "live"), ("readinessProbe", "ready")):
            command = container.get(kind, {}).get("exec", {}).get("command", [])
            if command[:3] != ["waybill", "probe", question]:
                yield f"{pod.label}: {kind} is not `waybill probe {question}`"


def connections_fit(rendered: Rendered) -> Iterator[str]:
    """All pods at their most, one more each while they roll, leave Postgres some connections."""
    limits = [
        int(one["spec"].get("postgresql", {}).get("parameters", {}).get("max_connections", 100))
        for one in rendered.of("Cluster")
    ]
    said = [str(arg) for pod in rendered.pods for container in pod.containers for arg in container.get("args", [])]
    limits += [int(found[1]) for arg in said if (found := re.fullmatch(r"max_connections=(\d+)", arg))]
    if not limits:
        return
    each = inspect.signature(Ledger.__init__).parameters["pool_size"].default + 5
    most = {
        one["spec"]["scaleTargetRef"]["name"]: one["spec"].get("maxReplicaCount", 100)
        for one in rendered.of("ScaledObject")
    }
    total = 0
    for pod, container in _fleet(rendered):
        if "WAYBILL_DATABASE_URL" in environment(rendered, container):
            count = most.get(pod.name, pod.owner["spec"].get("replicas", 1)) + 1
            total += count * (CONTROL_CONNECTIONS if container["args"][0] == "control" else each)
    if total + CONNECTIONS_KEPT_FREE > min(limits):
        yield f"the pods may open {total} connections; max_connections {min(limits)} must be {total + CONNECTIONS_KEPT_FREE} or more"


def network_labels_fit(rendered: Rendered) -> Iterator[str]:
    """Who is given an address carries the label that opens the way to it, and nobody else does."""
    for pod, container in _fleet(rendered):
        env = environment(rendered, container)
        wanted = {
            "waybill.dev/ledger": "client" if "WAYBILL_DATABASE_URL" in env else None,
            "waybill.dev/redis": "client" if "WAYBILL_REDIS_URL" in env else None,
            "waybill.dev/provider": "remote" if set(KEY_OF.values()) & set(env) else None,
        }
        for label, value in wanted.items():
            if pod.labels.get(label) != value:
                yield f"{pod.label}: label {label} is {pod.labels.get(label)!r}, its environment asks for {value!r}"


def hosts_exist(rendered: Rendered) -> Iterator[str]:
    """A host without a dot is a Service of this overlay that listens on that port."""
    texts: dict[str, str] = {}
    for pod, container in _fleet(rendered):
        for name, value in environment(rendered, container).items():
            if value.startswith("secret:"):
                secret, _, key = value.removeprefix("secret:").partition("/")
                value = rendered.secret_values(secret).get(key, "")
            if "://" in value:
                texts[f"{pod.label}: {name}"] = value
    for where, url in texts.items():
        parts = urlsplit(re.sub(r"\{\{.*?\}\}", "password", url))
        host, port = parts.hostname or "", parts.port
        if not host or "." in host:
            continue
        service = rendered.named("Service", host)
        if service is None:
            yield f"{where}: no Service is named {host!r}"
        elif port not in [item["port"] for item in service["spec"]["ports"]]:
            yield f"{where}: Service {host} does not listen on {port}"


def policies_are_right(rendered: Rendered) -> Iterator[str]:
    """A policy file that is mounted is read here, with the code that reads it there."""
    for pod, container in _fleet(rendered):
        path = environment(rendered, container).get("WAYBILL_POLICY_FILE")
        if not path:
            continue
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        text = None
        for mount in container.get("volumeMounts", []):
            folder = mount["mountPath"].rstrip("/") + "/"
            name = volumes.get(mount["name"], {}).get("configMap", {}).get("name")
            if path.startswith(folder) and name is not None:
                text = (rendered.config(name) or {}).get(path.removeprefix(folder))
        if text is None:
            yield f"{pod.label}: WAYBILL_POLICY_FILE {path} is in no ConfigMap that is mounted"
            continue
        try:
            parse(text, path)
        except ConfigError as exc:
            yield f"{pod.label}: {exc}"


def policies_are_the_same(rendered: Rendered) -> Iterator[str]:
    """Who routes, who calls and who takes jobs in read one policy: a gateway with another refuses the fleet's intents."""
    files = {
        pod.label: environment(rendered, container).get("WAYBILL_POLICY_FILE") or "the one in the image"
        for pod, container in _fleet(rendered)
        if (container.get("args") or [""])[0] in ("dispatcher", "worker", "gateway", "metrics")
    }
    routing = files.get("Deployment/dispatcher")
    for label, file in files.items():
        if routing is not None and file != routing:
            yield f"{label}: its policy is {file}, the dispatcher's is {routing}; set WAYBILL_POLICY_FILE alike"


RULES: tuple[Rule, ...] = (
    command_lines_parse,
    settings_are_accepted,
    settings_are_complete,
    secrets_stay_secret,
    queues_have_workers,
    scalers_fit,
    drains_fit,
    heartbeats_fit,
    connections_fit,
    network_labels_fit,
    hosts_exist,
    policies_are_right,
    policies_are_the_same,
)
