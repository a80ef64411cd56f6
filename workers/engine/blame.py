"""Who is to blame for a batch that failed, in words that can travel.

    InvalidRequest     the content of the requests: the model says so, of the batch as a whole
    InvalidRows        the content of some rows: the model says which, and what is wrong with each
    OutputMismatch     the model's outputs
    MemoryError        the size of the batch
    anything else      the model, or a row that it fails on

A model's texts are the model's: they may be of any length, of any class or no text at all. Whatever they are, an answer
is made of them that fits a frame of the link.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Final

from contracts.errors import InvalidRequest, InvalidRows
from workers.engine.exchange import OutputMismatch
from workers.link import Batch, Failed, InvalidRow

MAX_MESSAGE: Final = 500  # characters of a text that travel; enough for its first sentences
MAX_NAMED: Final = 1024
"""Rows that one answer names; with their texts about half a frame. Those beyond are found when the rest runs again."""
_UNSAID: Final = "the model refuses this content, and does not say why"
_READ: Final = 4 * MAX_MESSAGE  # characters that are looked at, since white space is made less of


def failed(batch: Batch, exc: BaseException) -> Failed:
    """The answer to a batch under which a model raised."""
    if isinstance(exc, InvalidRows):
        try:
            named = _named(exc.rows, batch.rows)
        except OutputMismatch as mismatch:
            return Failed(batch.slot, batch.sequence, "output", str(mismatch))
        except BaseException as odd:  # noqa: BLE001 - a mapping, or a number, may be code of the model
            text = f"the model raised InvalidRows that cannot be read: {in_a_line(odd)}"
            return Failed(batch.slot, batch.sequence, "output", text[:MAX_MESSAGE])
        return Failed(batch.slot, batch.sequence, "invalid", "", named)
    if isinstance(exc, InvalidRequest):
        return Failed(batch.slot, batch.sequence, "invalid", text_of(exc) or _UNSAID)
    if isinstance(exc, OutputMismatch):
        return Failed(batch.slot, batch.sequence, "output", text_of(exc))
    return Failed(batch.slot, batch.sequence, "memory" if isinstance(exc, MemoryError) else "error", in_a_line(exc))


def _named(rows: object, count: int) -> tuple[InvalidRow, ...]:
    """The rows of a batch that are at fault. Raises OutputMismatch when they cannot be told."""
    if not isinstance(rows, Mapping) or not rows:
        raise OutputMismatch("the model raised InvalidRows without a dict of what is wrong by row number")
    named: dict[int, str] = {}
    for row, why in rows.items():
        try:
            number = operator.index(row)
        except TypeError as exc:
            raise OutputMismatch("the model raised InvalidRows, but not all of its rows are numbers") from exc
        if not 0 <= number < count:
            raise OutputMismatch(
                f"the model raised InvalidRows for row {number} of a batch of {count} rows"[:MAX_MESSAGE]
            )
        if len(named) < MAX_NAMED:
            named[number] = text_of(why) or _UNSAID
    return tuple(InvalidRow(row, why) for row, why in sorted(named.items()))


def in_a_line(exc: BaseException) -> str:
    """An exception's class and text."""
    text = text_of(exc)
    return f"{type(exc).__name__}: {text}"[:MAX_MESSAGE] if text else type(exc).__name__


def text_of(value: object) -> str:
    """Anything as one line of text that is not too long and can be encoded; empty when it has none."""
    try:
        text = str(value)
    except BaseException:  # noqa: BLE001 - code of the model, too
        return ""
    return sendable(" ".join(text[:_READ].split())[:MAX_MESSAGE])


def sendable(text: str) -> str:
    """The same, but for halves of characters: they are text in Python and nowhere else."""
    return text.encode("utf-8", "replace").decode()
