"""What the replies of a run say: pure arithmetic over responses.

Everything is taken from what the caller got. How many batches there were is not seen by the caller, but each response
tells the size of its batch, and a batch of n rows is seen n times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from msgspec import Struct, field

from contracts.messages import Response, Status
from deploy.demo.images import Digits

PHASES = ("queued", "batched", "computed", "returned", "total")
_BUCKETS = (1, 2, 4, 8, 16, 32, 64)


class Answer(Struct, frozen=True):
    """One response, and which image of which version it answers."""

    version: int
    image: int
    response: Response


class Percentiles(Struct, frozen=True):
    """Milliseconds."""

    p50: float
    p99: float


class VersionReport(Struct, frozen=True, kw_only=True):
    """One version in one run."""

    model: str
    asked: int
    answered: int
    """Requests with exactly one terminal response, whose status is OK."""
    accuracy: float
    """Of the images that the model was not trained on."""
    batches: dict[str, float] = field(default_factory=dict)
    """Batches by size: `1`, `2`, `3-4`, `5-8`, … rows."""
    mean_batch: float = 0.0
    latency_ms: dict[str, Percentiles] = field(default_factory=dict)
    """p50 and p99 of `queued`, `batched`, `computed`, `returned` and `total`."""
    longest_ms: float = 0.0
    """The longest that any request took."""
    workers: dict[str, int] = field(default_factory=dict)
    """Responses by `worker on device`."""
    statuses: dict[str, int] = field(default_factory=dict)


class RunReport(Struct, frozen=True, kw_only=True):
    """One run over both versions."""

    seconds: float
    requests_per_second: float
    versions: tuple[VersionReport, ...]
    doubled: int
    """Requests for which the caller got more than one response: must be 0."""
    duplicates: int
    """Responses that came a second time and were dropped by their id, after a redelivery."""

    @property
    def asked(self) -> int:
        """Requests."""
        return sum(version.asked for version in self.versions)

    @property
    def answered(self) -> int:
        """Requests with exactly one response, OK."""
        return sum(version.answered for version in self.versions)


def report_run(
    answers: Mapping[str, Sequence[Answer]], digits: Digits, asked: Mapping[int, int], seconds: float, duplicates: int
) -> RunReport:
    """Sum up a run; `answers` holds all responses by request id, `asked` the number of requests by version."""
    once = [found[0] for found in answers.values() if len(found) == 1]
    return RunReport(
        seconds=seconds,
        requests_per_second=len(answers) / seconds if seconds else 0.0,
        versions=tuple(
            _report_version(version, [answer for answer in once if answer.version == version], digits, count)
            for version, count in sorted(asked.items())
        ),
        doubled=sum(1 for found in answers.values() if len(found) > 1),
        duplicates=duplicates,
    )


def _report_version(version: int, answers: Sequence[Answer], digits: Digits, asked: int) -> VersionReport:
    good = [answer for answer in answers if answer.response.status is Status.OK]
    sizes = [answer.response.receipt.batch_rows for answer in good]
    batches = sum(1 / size for size in sizes if size)
    return VersionReport(
        model=f"digits@{version}",
        asked=asked,
        answered=len(good),
        accuracy=_accuracy(good, digits),
        batches=histogram(sizes),
        mean_batch=round(len(sizes) / batches, 1) if batches else 0.0,
        latency_ms=_latency(good),
        longest_ms=max((answer.response.receipt.total_us for answer in good), default=0) / 1000,
        workers=dict(
            Counter(f"{a.response.receipt.worker} on {a.response.receipt.device}" for a in good).most_common()
        ),
        statuses=dict(Counter(answer.response.status.value for answer in answers)),
    )


def _accuracy(answers: Sequence[Answer], digits: Digits) -> float:
    fresh = [answer for answer in answers if digits.held_out[answer.image]]
    hits = sum(
        int(answer.response["scores"].to_numpy()[0].argmax()) == int(digits.labels[answer.image]) for answer in fresh
    )
    return round(hits / len(fresh), 4) if fresh else 0.0


def histogram(sizes: Sequence[int]) -> dict[str, float]:
    """How many batches there were of each size, told from the batch sizes that their rows reported."""
    found: Counter[str] = Counter()
    counts: dict[str, float] = {}
    for size in sizes:
        if size:
            found[_bucket(size)] += 1
            counts[_bucket(size)] = counts.get(_bucket(size), 0.0) + 1 / size
    order = [_bucket(top) for top in (*_BUCKETS, _BUCKETS[-1] + 1)]
    return {name: round(counts[name], 1) for name in order if name in counts}


def _bucket(size: int) -> str:
    for low, top in zip((0, *_BUCKETS), _BUCKETS, strict=False):
        if size <= top:
            return str(top) if top - low == 1 else f"{low + 1}-{top}"
    return f"{_BUCKETS[-1] + 1}+"


def _latency(answers: Sequence[Answer]) -> dict[str, Percentiles]:
    if not answers:
        return {}
    found = {}
    for phase in PHASES:
        times = np.array([getattr(answer.response.receipt, f"{phase}_us") for answer in answers]) / 1000
        p50, p99 = np.percentile(times, (50, 99))
        found[phase] = Percentiles(round(float(p50), 2), round(float(p99), 2))
    return found
