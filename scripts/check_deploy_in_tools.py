"""Runs in the environment of requirements-deploy.lock, never in the project's: parses YAML, applies Kubernetes' schemas.

parse      YAML documents on stdin -> a JSON list of objects
validate   {"versions": [...], "sets": {name: [objects]}} -> {name: [complaints]}
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from typing import Any


def parse(text: str) -> list[Any]:
    """The documents. By name: these packages are not there when the project is type-checked."""
    yaml: Any = import_module("yaml")
    return [document for document in yaml.safe_load_all(text) if document]


def validate(question: dict[str, Any]) -> dict[str, list[str]]:
    """Complaints by set; an object that several versions refuse in the same words is named once."""
    schemas: Any = import_module("kubernetes_validate")
    # The import above has loaded it; its exceptions are not all exported.
    inside: Any = import_module("kubernetes_validate.utils")
    answer: dict[str, list[str]] = {}
    known: dict[tuple[str, str], str | None] = {}
    for name, objects in question["sets"].items():
        said: dict[str, None] = {}
        for one in objects:
            for version in question["versions"]:
                key = (version, json.dumps(one, sort_keys=True))
                if key not in known:
                    known[key] = _complaint(schemas, inside, one, version)
                complaint = known[key]
                if complaint is not None:
                    said[complaint] = None
        answer[name] = list(said)
    return answer


def _complaint(schemas: Any, inside: Any, one: dict[str, Any], version: str) -> str | None:
    label = f"{one.get('kind')}/{one.get('metadata', {}).get('name')}"
    try:
        schemas.validate(one, version, strict=True)
    except inside.SchemaNotFoundError:
        return f"unknown {one['apiVersion']}/{one['kind']} {one['metadata']['name']}"
    except inside.ValidationError as exc:
        where = ".".join(str(part) for part in exc.path)
        return f"{label}: {where or 'the object'}: {exc.message[:200]}"
    return None


if __name__ == "__main__":
    given = sys.stdin.read()
    json.dump(parse(given) if sys.argv[1] == "parse" else validate(json.loads(given)), sys.stdout, default=str)
