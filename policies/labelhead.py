"""The label head: a linear model of an intent's labels, fitted on what paid models answered. The rung before the small language model.

TF-IDF over hashed signs (words, pairs of words, parts of words) and regularised least squares on one-hot labels. Least squares
instead of logistic regression: at 100 to 800 labels it was right 1 to 5 points more often (docs/decisions/0153-label-heads.md), it
takes a thirtieth of the time, and what it says of an item it has *not* seen follows from one inverse (leave one out), so that
every label it was fitted on is also a record for its gate. What is kept of the texts is numbers: hashes and weights.
"""

from __future__ import annotations

import io
import re
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from scipy import sparse

from policies.evaluate.outcomes import Floats, Ints
from policies.localgate import Scored

FORMAT: Final = 1
_PENALTY: Final = 0.2
_TEMPERATURES: Final = tuple(float(value) for value in np.geomspace(2.0, 40.0, 14))
_MOST_SIGNS: Final = 30_000
"""The commonest ones: with 100 labels the weights then take a few MB."""
_MOST_WORDS: Final = 1000
_WORD: Final = re.compile(r"\w+|[^\w\s]")
_PART_SIZES: Final = (3, 4, 5)


class BadHead(ValueError):
    """The bytes are no head that this version reads."""


@dataclass(frozen=True)
class Head:
    """A fitted head.

    Attributes:
        labels: Those that occurred; it never says another.
        signs: Hashes, ascending.
        rarity: Weight of each sign (IDF), and of one that is not known.
        weights, offset: Scores by sign and label.
        temperature: From scores to log-probabilities.
        unseen: Log-probabilities of the items it was fitted on, each as if it had not been among them.
        paid: What the paid model answered to those: positions in `labels`.
    """

    labels: tuple[str, ...]
    signs: Ints
    rarity: Floats
    weights: Floats
    offset: Floats
    temperature: float
    unseen: Floats
    paid: Ints

    def logprobs(self, text: str) -> dict[str, float]:
        """Of each label."""
        [row] = _rows([_signs(text)], self.signs, self.rarity)
        scores = np.asarray(row @ self.weights)[0] + self.offset
        found = _log_softmax(self.temperature * scores[None])[0]
        return {label: float(value) for label, value in zip(self.labels, found, strict=True)}

    def records(self) -> list[Scored]:
        """For its gate."""
        right = self.unseen.argmax(axis=1) == self.paid
        return [
            Scored(float(share), bool(good)) for share, good in zip(np.exp(self.unseen.max(axis=1)), right, strict=True)
        ]

    def to_bytes(self) -> bytes:
        """As the ledger keeps it; the same head always gives the same bytes."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            format=np.array(FORMAT),
            labels=np.frombuffer("\n".join(map(_one_line, self.labels)).encode(), dtype=np.uint8),
            signs=self.signs.astype(np.uint32),
            rarity=self.rarity.astype(np.float32),
            weights=self.weights.astype(np.float16),
            numbers=np.array([*self.offset, self.temperature]),
            unseen=self.unseen.astype(np.float16),
            paid=self.paid.astype(np.uint8),
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Head:
        """Read what `to_bytes` wrote.

        Raises:
            BadHead: It is something else, or of another version.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as stored:
                if int(stored["format"]) != FORMAT:
                    raise BadHead(f"format {int(stored['format'])} is not {FORMAT}")
                numbers = stored["numbers"]
                return cls(
                    labels=tuple(map(_as_given, bytes(stored["labels"]).decode().split("\n"))),
                    signs=stored["signs"].astype(np.int64),
                    rarity=stored["rarity"].astype(np.float64),
                    weights=stored["weights"].astype(np.float64),
                    offset=numbers[:-1],
                    temperature=float(numbers[-1]),
                    unseen=stored["unseen"].astype(np.float64),
                    paid=stored["paid"].astype(np.int64),
                )
        except (KeyError, EOFError, OSError, zipfile.BadZipFile) as exc:
            raise BadHead(f"these bytes are no head ({exc})") from exc


def fit_head(texts: Sequence[str], given: Sequence[str], sampled: Sequence[bool]) -> Head:
    """Fit a head.

    Args:
        texts: All different: an item that occurs twice would be seen after all when it is left out.
        given: The paid model's label of each.
        sampled: Which of them stand for all jobs (not only for those that an earlier head was unsure of): the gate's records.

    Raises:
        ValueError: Fewer than two labels occur.
    """
    labels = tuple(sorted(set(given)))
    if len(labels) < 2:
        raise ValueError(f"all of {len(texts)} items have the same label")
    counted = [_signs(text) for text in texts]
    signs, rarity = _vocabulary(counted)
    rows = _rows(counted, signs, rarity)
    paid = np.array([labels.index(label) for label in given], dtype=np.int64)
    targets = np.eye(len(labels))[paid]
    # The constant sign (the 1) is what an offset is to other models: so leaving one out stays exact.
    kernel = np.asarray((rows @ rows.T).todense()) + 1.0
    inverse = np.linalg.inv(kernel + _PENALTY * np.eye(len(texts)))
    dual = inverse @ targets
    unseen = targets - dual / np.diag(inverse)[:, None]
    everything = np.arange(len(texts))
    temperature = min(_TEMPERATURES, key=lambda each: -float(_log_softmax(each * unseen)[everything, paid].mean()))
    kept = np.flatnonzero(np.array(sampled, dtype=bool))
    return Head(
        labels=labels,
        signs=signs,
        rarity=rarity,
        weights=np.asarray(rows.T @ dual),
        offset=dual.sum(axis=0),
        temperature=temperature,
        unseen=_log_softmax(temperature * unseen[kept]),
        paid=paid[kept],
    )


def _signs(text: str) -> Counter[int]:
    """Hash of each sign -> how often it occurs."""
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())[:_MOST_WORDS]
    found = Counter(words)
    found.update(f"{first} {second}" for first, second in pairwise(words))
    for word in set(words):
        framed = f"<{word}>"
        found.update(f"#{framed[at : at + size]}" for size in _PART_SIZES for at in range(len(framed) - size + 1))
    return Counter({zlib.crc32(sign.encode("utf-8", "surrogatepass")): count for sign, count in found.items()})


def _vocabulary(counted: Sequence[Counter[int]]) -> tuple[Ints, Floats]:
    """Signs, ascending, and their weights; last the weight of a sign that is not among them."""
    within = Counter(sign for found in counted for sign in found)
    common = sorted((-count, sign) for sign, count in within.items())[:_MOST_SIGNS]
    signs = np.array(sorted(sign for _, sign in common), dtype=np.int64)
    counts = np.array([*(within[int(sign)] for sign in signs), 1], dtype=np.float64)
    return signs, np.log(len(counted) / counts) + 1


def _rows(counted: Sequence[Counter[int]], signs: Ints, rarity: Floats) -> sparse.csr_matrix:
    """One row per text, each of length 1 with the signs that are not known: so an item that is left out is read as a new one is."""
    columns: list[Ints] = []
    values: list[Floats] = []
    starts = [0]
    for found in counted:
        hashes = np.fromiter(found.keys(), dtype=np.int64, count=len(found))
        counts = np.fromiter(found.values(), dtype=np.float64, count=len(found))
        at = np.searchsorted(signs, hashes)
        at[np.append(signs, -1)[at] != hashes] = len(signs)
        row = (1 + np.log(counts)) * rarity[at]
        known = at < len(signs)
        columns.append(at[known])
        values.append(row[known] / (np.linalg.norm(row) or 1.0))
        starts.append(starts[-1] + int(known.sum()))
    flat = np.concatenate(values), np.concatenate(columns), np.array(starts)
    return sparse.csr_matrix(flat, shape=(len(counted), len(signs)))


def _log_softmax(scores: Floats) -> Floats:
    shifted = scores - scores.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), dtype=np.float64)


def _one_line(label: str) -> str:
    return label.replace("\\", "\\\\").replace("\n", "\\n")


def _as_given(line: str) -> str:
    return re.sub(r"\\(.)", lambda found: "\n" if found[1] == "n" else found[1], line)
