"""Small invented outcomes, and the recorded ones where the data folder is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def recorded() -> Callable[[str], Path]:
    """Return the path of a recorded file, or skip."""

    def find(name: str) -> Path:
        path = DATA / name
        if not path.exists():
            pytest.skip(f"recorded data {name} is not beside the repository (../shared/data)")
        return path

    return find


@pytest.fixture(scope="session")
def invented() -> Callable[..., dict[str, list[Any]]]:
    """Return columns of outcomes with a known structure: `small` is right on easy prompts and agrees with `tiny` there."""

    def make(count: int = 400, *, seed: int = 1, answers: bool = True) -> dict[str, list[Any]]:
        rng = np.random.default_rng(seed)
        columns: dict[str, list[Any]] = {
            name: [] for name in ("item_id", "intent", "prompt", "model", "score", "cost_usd", "answer")
        }
        for item in range(count):
            hard = bool(rng.random() < 0.4)
            words = "prove the difficult theorem about" if hard else "add the simple numbers of"
            prompt = f"{words} case {item} " + " ".join(rng.choice(["red", "blue", "green", "old", "new"], 4))
            truth = str(rng.integers(100, 999))
            for model, right, cost in (
                ("big", 0.97, 1.0),
                ("small", 0.3 if hard else 0.98, 0.1),
                ("tiny", 0.1 if hard else 0.9, 0.02),
            ):
                good = bool(rng.random() < right)
                answer = truth if good else str(rng.integers(1000, 9999))
                row = (
                    f"i{item}",
                    "hard" if hard else "easy",
                    prompt,
                    model,
                    float(good),
                    cost,
                    answer if answers else None,
                )
                for name, value in zip(columns, row, strict=True):
                    columns[name].append(value)
        return columns

    return make
