"""What the figures of a GPU come to: pure, so that it is tested where there is none."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

KNEE = 0.95
"""Share of the peak that the smallest useful batch reaches."""


class Bucket(NamedTuple):
    """One batch size: milliseconds a batch, run as it is, and from a graph (None where none could be made)."""

    rows: int
    eager_ms: float
    graph_ms: float | None

    @property
    def best_ms(self) -> float:
        return self.eager_ms if self.graph_ms is None else min(self.eager_ms, self.graph_ms)

    @property
    def rows_per_s(self) -> float:
        return self.rows / self.best_ms * 1000

    @property
    def graph_gain(self) -> float | None:
        return None if self.graph_ms is None else self.eager_ms / self.graph_ms


def knee(buckets: Sequence[Bucket]) -> Bucket:
    """The smallest batch that comes near the peak."""
    peak = max(bucket.rows_per_s for bucket in buckets)
    return next(b for b in sorted(buckets, key=lambda b: b.rows) if b.rows_per_s >= KNEE * peak)


def line(buckets: Sequence[Bucket]) -> tuple[float, float]:
    """Seconds of a batch, and seconds more for each row: what a simulated device is made of. Neither is negative."""
    rows, seconds = [b.rows for b in buckets], [b.best_ms / 1000 for b in buckets]
    if len(set(rows)) == 1:
        return seconds[0], 0.0
    slope, fixed = np.polyfit(rows, seconds, 1)
    return max(float(fixed), 1e-6), max(float(slope), 0.0)


def folder_name(device: str) -> str:
    """A device's name as a folder: `NVIDIA H200` is `h200`."""
    words = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return words.removeprefix("nvidia-") or "gpu"


def page(device: str, results: Mapping[str, Sequence[Mapping[str, object]]]) -> str:
    """The results as a page: a table for each measurement."""
    lines = [f"# Measured on one {device}", "", "Written by `make bench-gpu`; raw figures in the JSON beside it.", ""]
    for name, rows in results.items():
        lines += [f"## {name}", ""]
        if not rows:
            lines += ["Not measured.", ""]
            continue
        columns = list(rows[0])
        lines += [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
        lines += [f"| {' | '.join(_text(row.get(column)) for column in columns)} |" for row in rows]
        lines.append("")
    return "\n".join(lines)


def _text(value: object) -> str:
    if value is None:
        return "–"
    return (
        f"{value:,.3g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )
