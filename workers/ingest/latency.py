"""What the engine's past says about the next batch, and how fast requests arrive: estimates over values, no clock.

`LatencyTable` keeps mean and variance of the computing time per bucket. Its p99 is the mean and three deviations, but
at least the second longest of the last twenty batches: it rises as soon as two batches were slow and falls as they
leave the window, while a single hiccup of the machine does not turn away requests that could be served. Buckets never
seen are estimated from those that were, and within a bucket a batch takes what lies between the sizes, unless all are
filled up to a size. A single odd batch moves a mean by little.

Before the first batch the table may be seeded with what an engine measured on made-up inputs. A bucket's seed counts
until it has real samples enough; from then on the seeds of the others are scaled by what the nearest such bucket turned
out to take, since made-up inputs say better how sizes compare than how long real requests take; but never beyond what
the measured ones allow: a batch takes no longer than a larger one, or than the smaller ones that its rows would fill.
Seeds are few, and one taken while the machine was busy must not turn everything away. Seeds alone never refuse work.

Predictions may be used to refuse work only while they are fresh. Refused work is never measured, so an estimate that
became too high by accident would refuse everything for ever; once no batch has run for `STALE_SECONDS`, the next one
runs whatever the table says.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence

from workers.ingest.buckets import Buckets

MIN_SAMPLES = 5
"""Batches of a bucket before its time is used for predictions."""
STALE_SECONDS = 0.1
_ALPHA = 0.1
_WINDOW = 20
_SPIKE = 3.0  # a batch that took this many times the mean counts in full only when the next one did too
_ODD, _LEAST_ODD = 3.0, 0.05  # deviations, or a part of the mean, that one batch moves it by at most (Huber)
_DERIVE_EVERY = 32


class _Bucket:
    __slots__ = ("count", "mean", "previous", "recent", "variance")

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.variance = self.previous = 0.0
        self.recent: deque[float] = deque(maxlen=_WINDOW)

    def observe(self, seconds: float) -> None:
        self.recent.append(seconds)
        self.count += 1
        previous, self.previous = self.previous, seconds
        if self.count == 1:
            self.mean = seconds
            return
        if self.count > MIN_SAMPLES:
            ceiling = _SPIKE * self.mean
            if seconds > ceiling and previous > ceiling:
                self.mean, self.variance = min(seconds, previous), 0.0  # two in a row: the world has changed
                return
            # One odd batch is no news. Should it be, the deviation grows with it, and the mean follows soon.
            most = max(_ODD * math.sqrt(self.variance), _LEAST_ODD * self.mean)
            seconds = min(max(seconds, self.mean - most), self.mean + most)
        # The first samples weigh alike, later ones exponentially less.
        weight = max(_ALPHA, 1 / self.count)
        step = seconds - self.mean
        self.mean += weight * step
        self.variance = (1 - weight) * (self.variance + weight * step * step)

    def p99(self) -> float:
        longest = sorted(self.recent)
        return max(self.mean + 3 * math.sqrt(self.variance), longest[-2 if len(longest) > 1 else -1])


class LatencyTable:
    """Computing seconds by bucket: expected and 99th percentile."""

    def __init__(self, buckets: Buckets, *, is_stepped: bool = False) -> None:
        """`is_stepped` says that a batch is filled up to its bucket, and takes as long as that."""
        self.buckets = buckets
        self._is_stepped = is_stepped
        self._slopes = [0.0] * len(buckets.sizes)
        self._seen = [_Bucket() for _ in buckets.sizes]
        self._means = [0.0] * len(buckets.sizes)
        self._p99s = [0.0] * len(buckets.sizes)
        self._seeds: dict[int, tuple[float, float]] = {}
        self._until_derived = 0
        self.last_sample = -math.inf
        self.revision = 0
        """Rises when estimates of buckets other than the observed one were drawn anew."""
        self.is_known = False
        """Whether there is anything to predict from: a seed, or a bucket with samples enough."""
        self._is_measured = False

    def observe(self, now: float, rows: int, seconds: float) -> None:
        """A batch of `rows` rows took `seconds` and was done at `now`."""
        self.last_sample = now
        index = self.buckets.index(rows)
        bucket = self._seen[index]
        bucket.observe(seconds + self._slopes[index] * max(0, self.buckets.sizes[index] - rows))
        if bucket.count < MIN_SAMPLES:
            return
        self._means[index], self._p99s[index] = bucket.mean, bucket.p99()
        self._until_derived -= 1
        if bucket.count == MIN_SAMPLES or self._until_derived <= 0:
            self._derive()

    def seed(self, seconds: Mapping[int, Sequence[float]]) -> None:
        """Begin with what batches of so many rows took on made-up inputs; sizes that are no bucket are left out."""
        for rows, taken in seconds.items():
            if taken and rows in self.buckets.sizes:
                ordered = sorted(taken)
                typical, long = ordered[len(ordered) // 2], ordered[-2 if len(ordered) > 1 else -1]
                self._seeds[self.buckets.index(rows)] = typical, long
        if self._seeds:
            self._derive()

    def mean(self, rows: int) -> float:
        """Expected seconds for a batch of `rows`; 0 while nothing is known."""
        return self._less(self._means, rows)

    def p99(self, rows: int) -> float:
        """Seconds that 99 of 100 batches of `rows` do not exceed; 0 while nothing is known."""
        return self._less(self._p99s, rows)

    def _less(self, seconds: list[float], rows: int) -> float:
        """What a batch takes that fills its bucket, less what the missing rows would have taken."""
        sizes = self.buckets.sizes
        index = min(bisect_left(sizes, rows), len(sizes) - 1)  # as Buckets.index
        missing = sizes[index] - rows
        return seconds[index] - self._slopes[index] * missing if missing > 0 else seconds[index]

    def deviation(self, rows: int) -> float:
        """The standard deviation of the seconds for `rows`, odd batches left out; 0 while none has run."""
        return math.sqrt(self._seen[self.buckets.index(rows)].variance)

    def may_refuse(self, now: float) -> bool:
        """Whether the estimates are good enough to turn work away."""
        return self._is_measured and now - self.last_sample < STALE_SECONDS

    def rates(self) -> list[tuple[int, float]]:
        """Rows per second by bucket size; empty while nothing is known."""
        if not self.is_known:
            return []
        return [(size, size / max(mean, 1e-9)) for size, mean in zip(self.buckets.sizes, self._means, strict=True)]

    def _derive(self) -> None:
        """Estimate the buckets that were not seen from those that were, and from the seeds."""
        self._until_derived = _DERIVE_EVERY
        self.revision += 1
        measured = [index for index, bucket in enumerate(self._seen) if bucket.count >= MIN_SAMPLES]
        self._is_measured = bool(measured)
        for index in self._seeds.keys() - set(measured):
            scale, (typical, long) = self._scale(index, measured), self._seeds[index]
            self._means[index] = min(typical * scale, self._most(self._means, index, measured))
            self._p99s[index] = min(long * scale, self._most(self._p99s, index, measured))
        known = sorted({*measured, *self._seeds})
        self.is_known = bool(known)
        for index in range(len(self._seen)):
            if index not in known:
                self._means[index] = self._p99s[index] = self._estimate(index, known)
        if not self._is_stepped:
            sizes, means = self.buckets.sizes, self._means
            for index in range(1, len(sizes)):
                self._slopes[index] = max(0.0, means[index] - means[index - 1]) / (sizes[index] - sizes[index - 1])

    def _scale(self, index: int, measured: list[int]) -> float:
        """How many times longer real batches take than made-up ones, as the nearest bucket that has both says."""
        both = [other for other in measured if other in self._seeds and self._seeds[other][0] > 0]
        if not both:
            return 1.0
        nearest = min(both, key=lambda other: abs(other - index))
        return self._means[nearest] / self._seeds[nearest][0]

    def _most(self, seconds: list[float], index: int, measured: list[int]) -> float:
        """What a batch takes at most, by what those measured did."""
        sizes = self.buckets.sizes
        return min((seconds[other] * max(1.0, sizes[index] / sizes[other]) for other in measured), default=math.inf)

    def _estimate(self, index: int, known: list[int]) -> float:
        """Seconds for an unseen bucket, on the hopeful side: what is never tried is never learned."""
        sizes, means = self.buckets.sizes, self._means
        above = next((other for other in known if other > index), None)
        below = next((other for other in reversed(known) if other < index), None)
        if below is None:
            return means[above if above is not None else index]  # a smaller batch takes at most as long
        if above is None:
            before = next((other for other in reversed(known) if other < below), None)
            if before is None:
                return means[below]
            slope = max(0.0, means[below] - means[before]) / (sizes[below] - sizes[before])
        else:
            slope = (means[above] - means[below]) / (sizes[above] - sizes[below])
        return means[below] + slope * (sizes[index] - sizes[below])


class ArrivalRate:
    """Rows per second that arrive, an exponential average over about `window` seconds."""

    def __init__(self, window: float = 0.25) -> None:
        self._window = window
        self._rate = 0.0
        self._at = -math.inf

    def observe(self, now: float, rows: int) -> None:
        """`rows` rows have arrived since the last observation."""
        self._rate = self.at(now) + rows / self._window
        self._at = now

    def at(self, now: float) -> float:
        """The rate as of `now`."""
        return self._rate * math.exp(min(0.0, self._at - now) / self._window) if self._rate else 0.0
