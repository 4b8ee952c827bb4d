"""Holds compose.yaml to the rules of the manifests: each service is looked at as if it were a Deployment."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import check_deploy_pods
import check_deploy_rules
from check_deploy_objects import Object, Rendered

RULES = (
    check_deploy_pods.images_are_pinned,
    check_deploy_rules.command_lines_parse,
    check_deploy_rules.settings_are_accepted,
    check_deploy_rules.settings_are_complete,
    check_deploy_rules.secrets_stay_secret,
    check_deploy_rules.queues_have_workers,
    check_deploy_rules.drains_fit,
)


def complaints(document: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a compose file."""
    services: Mapping[str, Any] = document["services"]
    rendered = Rendered([_deployment(name, service) for name, service in services.items()])
    for rule in RULES:
        yield from rule(rendered)
    for name, service in services.items():
        for other in service.get("depends_on", {}):
            if other not in services:
                yield f"{name}: depends on {other!r}, which does not exist"
        if not service.get("read_only") and name != "postgres":
            yield f"{name}: read_only is not true"
        for port in service.get("ports", []):
            if not str(port).startswith("127.0.0.1:"):
                yield f"{name}: port {port} is open to the network; write 127.0.0.1:{port}"


def _deployment(name: str, service: Mapping[str, Any]) -> Object:
    command = [str(word).replace("$$", "$") for word in service.get("command", [])]
    container: Object = {
        "name": name,
        "image": service["image"],
        "args": command,
        "env": [_variable(key, value) for key, value in service.get("environment", {}).items() if value is not None],
    }
    probe = service.get("healthcheck", {}).get("test", [])
    if probe[:1] == ["CMD"]:
        container["readinessProbe"] = {"exec": {"command": probe[1:]}}
    grace_s = int(re.sub(r"s$", "", str(service.get("stop_grace_period", "10s"))))
    spec = {"containers": [container], "terminationGracePeriodSeconds": grace_s}
    return {"kind": "Deployment", "metadata": {"name": name}, "spec": {"template": {"metadata": {}, "spec": spec}}}


def _variable(key: str, value: object) -> Object:
    """A value with `${...}` in it is known only where it runs, like one of a Secret."""
    if "${" in str(value):
        return {"name": key, "valueFrom": {"secretKeyRef": {"name": "environment", "key": key}}}
    return {"name": key, "value": str(value)}
