"""A streaming model's answer: taken from its generator step by step, each step handed over before the next begins.

    def infer(self, inputs):
        for word in ...:
            gone = yield {"word": words}              # a part for every row of the batch
            yield {"word": some}, [0, 3]              # for these rows only
            yield {"word": last}, [3], True           # and these get nothing more
        return {"word": rest}                         # optional: the final part of all rows that are still open

What a `yield` gives back are the rows that nobody waits for any more, so that the model may spare itself the work; one
that looks away computes in vain and no more. When no row is left the generator is closed where it stands.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Generator

from workers.engine.exchange import OutputMismatch, OutputRegions
from workers.link import Batch, Continue, Part, Region

Steps = Generator[object, frozenset[int] | None, object]
Exchange = Callable[[Part], Continue]
_forms = (2, 3)  # a yield may give outputs and rows, and whether that is all for them


class LinkEnded(ConnectionError):
    """The ingest process is gone, in the middle of a stream."""


def nobody(part: Part) -> Continue:
    """An Exchange for when nobody waits."""
    return Continue(part.slot, part.sequence, stop=True)


def stream(
    steps: Steps, batch: Batch, outputs: OutputRegions, view: memoryview, exchange: Exchange
) -> tuple[tuple[Region, ...], int]:
    """Run a generator to its end, or until nobody waits: where its last outputs stand, and the last step's time in µs.

    Raises what the model raises, OutputMismatch, and LinkEnded, which `exchange` raises.
    """
    gone: frozenset[int] | None = None
    try:
        while True:
            began = time.perf_counter_ns()
            try:
                yielded = steps.send(gone)
            except StopIteration as end:
                regions = () if end.value is None else outputs.write(end.value, batch.rows, view)
                return regions, _since(began)
            values, rows, final = _unpacked(yielded, batch.rows)
            regions = outputs.write(values, batch.rows if rows is None else len(rows), view)
            answer = exchange(Part(batch.slot, batch.sequence, regions, rows, final, _since(began)))
            if answer.stop:
                return (), 0
            gone = frozenset(answer.gone)
    finally:
        steps.close()


def first_step(steps: Steps, outputs: OutputRegions, rows: int) -> None:
    """Begin a stream and check what it yields first, then let it go. Raises as `stream` does."""
    try:
        yielded = next(steps, None)
        if yielded is not None:
            values, chosen, _ = _unpacked(yielded, rows)
            outputs.place(values, rows if chosen is None else len(chosen))
    finally:
        steps.close()


def _unpacked(yielded: object, count: int) -> tuple[object, tuple[int, ...] | None, bool]:
    """Outputs, their rows, and whether these get nothing more. Raises OutputMismatch."""
    if not isinstance(yielded, tuple):
        return yielded, None, False
    if len(yielded) not in _forms:
        raise OutputMismatch(f"the model yielded {len(yielded)} values: it may be outputs, (outputs, rows) or one more")
    values, chosen, *final = yielded
    try:
        rows = tuple(operator.index(row) for row in chosen)
    except TypeError as exc:
        raise OutputMismatch("the rows that the model yielded for are not a list of numbers") from exc
    if len(set(rows)) != len(rows) or not all(0 <= row < count for row in rows):
        raise OutputMismatch(f"the rows that the model yielded for must be different ones of 0 to {count - 1}")
    if not rows:
        raise OutputMismatch("the model yielded for no row at all")
    return values, rows, bool(final and final[0])


def _since(began: int) -> int:
    return (time.perf_counter_ns() - began) // 1000
