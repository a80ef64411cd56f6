"""How long batches of each size take, measured before the first request.

Ingest's predictions start from this; what real batches take replaces it. Every size runs several times, so that a slow
first run or a busy moment of the machine is one sample among others, and the whole of it ends soon: a slow model is
measured at its smallest sizes, or not at all. Outputs are checked as in the warm-up, and thrown away.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from workers.link import Timing

ROUNDS = 5


def measure(
    run: Callable[[int], None], sizes: Iterable[int], seconds: float, clock: Callable[[], float] = time.perf_counter
) -> tuple[Timing, ...]:
    """Run batches of these sizes for about so many seconds; only sizes that had all their rounds are told."""
    end = clock() + seconds
    timings: list[Timing] = []
    for rows in sorted(sizes):
        taken: list[float] = []
        for left in range(ROUNDS, 0, -1):
            started = clock()
            if started + left * min(taken, default=0.0) > end:
                return tuple(timings)  # larger ones take longer still
            run(rows)
            taken.append(clock() - started)
        timings.append(Timing(rows, tuple(taken)))
    return tuple(timings)
