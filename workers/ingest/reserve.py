"""How much earlier than predicted a request must be, so that few answers are late.

Adaptive conformal inference (Gibbs and Candès, 2021): each batch moves the reserve by how far its late share is from
the one that is aimed at. However machines behave, the late share comes to that in the long run, as long as the reserve
may grow; where nobody is near a deadline it goes to nothing.

It may not grow without end: where the objective leaves hardly room for two batches, a large one would refuse many for
the sake of a few. It may take what costs hardly any answer, by a fluid estimate, and else a few deviations of a batch:
who comes later than that is nearly always in time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


class Reserve:
    """Seconds by which requests must be earlier than predicted."""

    AIM = 0.005
    """The share of late answers."""
    FIRST = 0.002
    STEP = 0.25
    """A batch that is late as a whole adds this part of its time."""
    COST = 0.02
    """The share of what could be served that it may cost; more only up to `DOUBTFUL`."""
    DOUBTFUL = 1.5
    """Deviations of a batch's time: a request that has more to spare is in time in more than nine of ten cases."""

    def __init__(self) -> None:
        self.seconds = self.FIRST

    def learn(self, share_late: float, batch_seconds: float, most: float) -> None:
        """A share of the answers of a batch was late; the reserve may be `most` seconds."""
        step = self.STEP * batch_seconds * (share_late - self.AIM)
        self.seconds = max(0.0, min(self.seconds + step, most))


def most_reserve(rates: Sequence[tuple[int, float]], arriving: float, allowed: float) -> float:
    """The reserve that costs no more than its share, from rows per second by batch size.

    Of requests that may take `allowed` seconds a batch can hold those that came within what it leaves of that. Where
    that is fewer rows than fill it, it serves so many per batch.
    """
    if not rates or not arriving or math.isinf(allowed):
        return math.inf
    windows = [(size, rate, allowed - size / rate) for size, rate in rates]
    possible = max(min(rate, rate * arriving * window / size) for size, rate, window in windows)
    served = (1 - Reserve.COST) * min(arriving, max(0.0, possible))
    return max(
        (window - served * size / (rate * arriving) for size, rate, window in windows if rate >= served), default=0.0
    )
