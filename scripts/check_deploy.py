"""Checks deploy/ without a cluster, in four layers; `./run check-deploy`.

    1 render      every overlay, with a pinned kubectl; the Dockerfile's linter; compose.yaml by the rules that fit it
    2 schemas     Kubernetes' own at the oldest and newest supported version, strictly; ours for custom kinds
    3 rules       what no schema knows: the objects fit each other, and fit Waybill's code
    4 rehearsal   every pod as a process of this machine: probes, jobs, SIGTERM, a lost broker, the books

Exit code 1 and a line for each thing that is wrong. Layers 1 to 3 take seconds; the rehearsal about a minute an overlay.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import check_deploy_compose
import check_deploy_pods
import check_deploy_rules
import check_deploy_schemas
import check_deploy_tools as tools
from check_deploy_objects import Object, Rendered
from check_deploy_stage import RehearsalFailed

from waybill.embedded import EmbeddedError

RULES = (*check_deploy_pods.RULES, *check_deploy_rules.RULES)


def schema_complaints(objects: Sequence[Object]) -> list[str]:
    """The second layer. A kind for which there is no schema, theirs or ours, is a mistake."""
    theirs = [one for one in objects if not check_deploy_schemas.knows(one)]
    return own_schema_complaints(objects) + schema_words(tools.validate({"": theirs})[""])


def own_schema_complaints(objects: Sequence[Object]) -> list[str]:
    """What our schemas say of the custom kinds."""
    ours = [one for one in objects if check_deploy_schemas.knows(one)]
    return [complaint for one in ours for complaint in check_deploy_schemas.complaints(one)]


def schema_words(lines: Sequence[str]) -> list[str]:
    """The validator's lines; one about a kind that it does not know says what that may mean."""
    said = []
    for line in lines:
        what, _, kind_and_name = line.partition(" ")
        doubt = "no schema knows this kind in this API version; was it removed or misspelt?"
        said.append(f"{kind_and_name}: {doubt}" if what == "unknown" else line)
    return said


def rule_complaints(objects: Sequence[Object]) -> list[str]:
    """The third layer."""
    rendered = Rendered(objects)
    return [complaint for rule in RULES for complaint in rule(rendered)]


def compose_complaints() -> list[str]:
    """The rules that fit one machine, on compose.yaml."""
    (document,) = tools.documents((tools.ROOT / "compose.yaml").read_text(encoding="utf-8"))
    return list(check_deploy_compose.complaints(document))


def check(overlay: Path, *, rehearsal: bool) -> list[str]:
    """All layers for one overlay; a layer whose lower one complained is left out, for it would only repeat it."""
    try:
        objects = tools.render(overlay)
    except tools.CheckError as exc:
        return [str(exc)]
    _say(overlay, f"renders to {len(objects)} objects")
    if said := schema_complaints(objects):
        return said
    _say(overlay, f"schemas of Kubernetes {' and '.join(tools.SUPPORTED)}, and ours for custom kinds")
    if said := rule_complaints(objects):
        return said
    _say(overlay, f"{len(RULES)} rules")
    if not rehearsal:
        return []
    from check_deploy_rehearsal import rehearse

    with tempfile.TemporaryDirectory(prefix="waybill-rehearsal-") as folder:
        try:
            rehearse(Rendered(objects), Path(folder), lambda line: _say(overlay, line))
        except (RehearsalFailed, EmbeddedError) as exc:
            for log in sorted((Path(folder) / "logs").glob("*.log")):
                tail = log.read_text(errors="replace").splitlines()[-5:]
                print("\n".join(f"    {log.stem} | {line}" for line in tail), file=sys.stderr)
            return [f"rehearsal: {exc}"]
    return []


def _say(overlay: Path, line: str) -> None:
    print(f"{overlay.name}: {line}", flush=True)


def main() -> int:
    """Check what is asked for."""
    parser = argparse.ArgumentParser(description="Check deploy/ without a cluster.")
    parser.add_argument("overlays", nargs="*", help="folders of deploy/k8s/overlays; default: all")
    parser.add_argument("--no-rehearsal", action="store_true", help="layers 1 to 3 only")
    given = parser.parse_args()
    every = sorted(path for path in tools.OVERLAYS.iterdir() if path.is_dir())
    names = [path.name for path in every]
    if strange := [name for name in given.overlays if name not in names]:
        parser.error(f"no overlay {', '.join(strange)}; there are {', '.join(names)}")
    began_s = time.monotonic()
    try:
        tools.install()
        said = tools.hadolint(tools.ROOT / "Dockerfile")
        said += [f"compose.yaml: {line}" for line in compose_complaints()]
        for overlay in every:
            if not given.overlays or overlay.name in given.overlays:
                said += [f"{overlay.name}: {line}" for line in check(overlay, rehearsal=not given.no_rehearsal)]
    except tools.CheckError as exc:
        said = [str(exc)]
    for line in said:
        print(f"check-deploy: {line}", file=sys.stderr)
    print(f"check-deploy: {'failed' if said else 'passed'} in {time.monotonic() - began_s:.0f} s")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
