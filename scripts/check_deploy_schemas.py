"""Closed schemas for the kinds that Kubernetes itself does not know, of the fields that we use and no others.

The published schemas leave custom kinds out (the validator only warns), and a misspelt field of a custom resource is dropped
without a word by an API server that prunes. So: a field that is not listed here is a mistake until somebody has looked it
up and added it. Written from the operators' reference pages: KEDA 2.x, CloudNativePG 1.2x, External Secrets v1, Prometheus
operator v1; the field names of KEDA and of the Prometheus operator were compared with generated models of 2.20 and 0.93.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
DURATION: Schema = {"type": "string", "pattern": r"^([0-9]+(ms|s|m|h|d))+$"}
NUMBER_TEXT: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?$"}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}


def closed(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def several(item: Schema) -> Schema:
    """A list of at least one."""
    return {"type": "array", "items": item, "minItems": 1}


RESOURCES = closed({}, {"requests": TEXTS, "limits": TEXTS})
SELECTOR = closed({"matchLabels": TEXTS})

SCALED_OBJECT = closed(
    {
        "scaleTargetRef": closed({"name": TEXT}, {"kind": TEXT, "apiVersion": TEXT}),
        "triggers": several(
            closed(
                {
                    "type": {"const": "postgresql"},
                    "metadata": closed(
                        {"query": TEXT, "targetQueryValue": NUMBER_TEXT}, {"activationTargetQueryValue": NUMBER_TEXT}
                    ),
                    "authenticationRef": closed({"name": TEXT}),
                },
                {"name": TEXT, "metricType": {"enum": ["AverageValue", "Value"]}},
            )
        ),
        "minReplicaCount": COUNT,
        "maxReplicaCount": {"type": "integer", "minimum": 1},
    },
    {
        "pollingInterval": COUNT,
        "cooldownPeriod": COUNT,
        "idleReplicaCount": COUNT,
        "fallback": closed({"failureThreshold": COUNT, "replicas": COUNT}),
        "advanced": closed(
            {},
            {
                "restoreToOriginalReplicaCount": FLAG,
                "horizontalPodAutoscalerConfig": closed({}, {"name": TEXT, "behavior": {"type": "object"}}),
            },
        ),
    },
)

TRIGGER_AUTHENTICATION = closed({"secretTargetRef": several(closed({"parameter": TEXT, "name": TEXT, "key": TEXT}))})

CLUSTER = closed(
    {"instances": {"type": "integer", "minimum": 1}, "storage": closed({"size": TEXT}, {"storageClass": TEXT})},
    {
        "imageName": TEXT,
        "bootstrap": closed({"initdb": closed({"database": TEXT, "owner": TEXT}, {"encoding": TEXT})}),
        "postgresql": closed(
            {},
            {
                "parameters": TEXTS,
                "synchronous": closed(
                    {"method": {"enum": ["any", "first"]}, "number": COUNT}, {"dataDurability": TEXT}
                ),
            },
        ),
        "resources": RESOURCES,
    },
)

EXTERNAL_SECRET = closed(
    {
        "secretStoreRef": closed({"name": TEXT}, {"kind": {"enum": ["SecretStore", "ClusterSecretStore"]}}),
        "target": closed(
            {"name": TEXT},
            {
                "creationPolicy": {"enum": ["Owner", "Orphan", "Merge", "None"]},
                "template": closed({"data": TEXTS}, {"engineVersion": {"const": "v2"}}),
            },
        ),
        "data": several(closed({"secretKey": TEXT, "remoteRef": closed({"key": TEXT}, {"property": TEXT})})),
    },
    {"refreshInterval": DURATION},
)

POD_MONITOR = closed(
    {"selector": SELECTOR, "podMetricsEndpoints": several(closed({"port": TEXT}, {"interval": DURATION, "path": TEXT}))}
)

PROMETHEUS_RULE = closed(
    {
        "groups": several(
            closed(
                {
                    "name": TEXT,
                    "rules": several(
                        closed({"alert": TEXT, "expr": TEXT, "labels": TEXTS, "annotations": TEXTS}, {"for": DURATION})
                    ),
                }
            )
        )
    }
)

SPECS: dict[tuple[str, str], Schema] = {
    ("keda.sh/v1alpha1", "ScaledObject"): SCALED_OBJECT,
    ("keda.sh/v1alpha1", "TriggerAuthentication"): TRIGGER_AUTHENTICATION,
    ("postgresql.cnpg.io/v1", "Cluster"): CLUSTER,
    ("external-secrets.io/v1", "ExternalSecret"): EXTERNAL_SECRET,
    ("monitoring.coreos.com/v1", "PodMonitor"): POD_MONITOR,
    ("monitoring.coreos.com/v1", "PrometheusRule"): PROMETHEUS_RULE,
}


def knows(one: Mapping[str, Any]) -> bool:
    """Whether there is a schema of ours for this object."""
    return (one.get("apiVersion"), one.get("kind")) in SPECS


def complaints(one: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with an object of a custom kind."""
    schema = closed({"apiVersion": TEXT, "kind": TEXT, "metadata": {"type": "object"}, "spec": SPECS[_kind(one)]})
    for error in Draft202012Validator(schema).iter_errors(one):
        where = ".".join(str(part) for part in error.absolute_path)
        yield f"{one['kind']}/{one['metadata']['name']}: {where or 'the object'}: {error.message[:200]}"


def _kind(one: Mapping[str, Any]) -> tuple[str, str]:
    return str(one["apiVersion"]), str(one["kind"])
