"""A warm cascade as bytes and back, without pickles: arrays in one file, the rest as JSON beside them.

What is read back decides exactly as what was fitted. The vocabulary is in it: words of the training prompts that at least two of
them contain.
"""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from policies.evaluate.bounds import Quality
from policies.evaluate.cascade import Cascade, Setting
from policies.evaluate.features import Vocabulary
from policies.evaluate.knowledge import Knowledge, Paid
from policies.evaluate.precall import Encoder, Precall
from policies.evaluate.smoother import Forest, Frozen

FORMAT: Final = 1
_FOREST: Final = ("roots", "children", "feature", "threshold", "values")


class BadCascade(ValueError):
    """The bytes are no cascade that this version reads; the message is one line."""


def pack(cascade: Cascade) -> bytes:
    """The cascade as bytes; `Cascade.warm` first, so that the one price that was chosen is in it.

    Raises:
        ValueError: It is not warm.
    """
    if cascade.chosen is None or len(cascade.settings) != 1:
        raise ValueError("only a warm cascade is packed")
    setting, precall = cascade.settings[0], cascade.knowledge.precall
    encoder = precall.encoder
    head = {
        "format": FORMAT,
        "models": cascade.models,
        "asked": cascade.asked,
        "as_chain": cascade.as_chain,
        "unit_cost": cascade.unit_cost,
        "price": setting.price,
        "saving": setting.saving,
        "quality": [setting.quality.ratio, setting.quality.standard_error, setting.quality.labels],
        "tags": encoder.tags,
        "answered": sorted(cascade.knowledge.answered),
        "metered": sorted(cascade.knowledge.metered),
        "states": [list(paid) for paid in cascade.steps],
    }
    arrays: dict[str, npt.NDArray[Any]] = {
        "head": np.frombuffer(json.dumps(head).encode(), dtype=np.uint8),
        # A token holds no line break: blanks are what tokens are parted by.
        "words": np.frombuffer(b"\n".join(encoder.vocabulary.words), dtype=np.uint8),
        "pairs": encoder.vocabulary.pairs,
        "word_weights": encoder.vocabulary.weights,
        "form_centre": encoder.centre,
        "form_spread": encoder.spread,
        "precall_weights": precall.weights,
        "precall_offset": precall.offset,
    }
    for number, (paid, step) in enumerate(cascade.steps.items()):
        arrays[f"{number}.centre"] = cascade.knowledge.centre[paid]
        arrays[f"{number}.spread"] = cascade.knowledge.spread[paid]
        arrays[f"{number}.weights"], arrays[f"{number}.offset"] = step.weights, step.offset
        for name in _FOREST:
            arrays[f"{number}.{name}"] = getattr(step.forest, name)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # its stub takes any of them for `allow_pickle`
    return buffer.getvalue()


def unpack(content: bytes) -> Cascade:
    """Read what `pack` wrote.

    Raises:
        BadCascade: It is something else, or of another version.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            return _read({name: stored[name] for name in stored.files})
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as exc:
        raise BadCascade("not a cascade that this version reads; fit it again with `waybill policy fit`") from exc


def _read(arrays: dict[str, npt.NDArray[Any]]) -> Cascade:
    head = json.loads(arrays["head"].tobytes())
    if head["format"] != FORMAT:
        raise ValueError(f"format {head['format']}")
    words = arrays["words"].tobytes().split(b"\n") if arrays["words"].size else []
    ratio, error, labels = head["quality"]
    states: list[Paid] = [tuple(paid) for paid in head["states"]]
    encoder = Encoder(
        vocabulary=Vocabulary(
            words={word: number for number, word in enumerate(words)},
            pairs=arrays["pairs"],
            weights=arrays["word_weights"],
        ),
        tags=head["tags"],
        centre=arrays["form_centre"],
        spread=arrays["form_spread"],
    )
    return Cascade(
        models=tuple(head["models"]),
        asked=tuple(head["asked"]),
        knowledge=Knowledge(
            precall=Precall(encoder=encoder, weights=arrays["precall_weights"], offset=arrays["precall_offset"]),
            answered=frozenset(head["answered"]),
            metered=frozenset(head["metered"]),
            centre={paid: arrays[f"{number}.centre"] for number, paid in enumerate(states)},
            spread={paid: arrays[f"{number}.spread"] for number, paid in enumerate(states)},
        ),
        steps={
            paid: Frozen(
                weights=arrays[f"{number}.weights"],
                offset=arrays[f"{number}.offset"],
                forest=Forest(**{name: arrays[f"{number}.{name}"] for name in _FOREST}),
            )
            for number, paid in enumerate(states)
        },
        settings=(Setting(price=head["price"], quality=Quality(ratio, error, labels), saving=head["saving"]),),
        chosen=0,
        unit_cost=head["unit_cost"],
        unseen_scores=np.zeros((0, len(head["models"]))),
        as_chain=head["as_chain"],
    )
