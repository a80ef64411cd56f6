"""`headrace infer --per-row`: each row of the inputs as a request of its own, many at a time.

For folders of files and for test sets: workers put rows of different requests into batches anyway, and each row has its
own outcome. Answers are shown in the order of the rows, whatever order they come in.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import typer

from contracts.errors import ConfigurationError
from deploy.cli.inputs import Arrays, outputs_text, response_json
from deploy.cli.output import console, print_json_line, say
from deploy.cli.outputs_file import OutputsFile

if TYPE_CHECKING:
    from contracts.messages import Parameters, Response
    from contracts.names import ModelVersion, Priority
    from producer.client import InferenceClient

_SHOWN_ERRORS = 5
_FAST = 10  # a second; below, tenths are of interest


class Sending(NamedTuple):
    """How requests are sent."""

    parameters: Parameters | None
    ttl_seconds: float
    priority: Priority
    in_flight: int


def rows_of(arrays: Arrays) -> list[Arrays]:
    """The inputs of each row. Raises ConfigurationError when the inputs differ in their number of rows."""
    given = {name: np.asarray(array) for name, array in arrays.items()}
    counts = {name: len(array) if array.ndim else 0 for name, array in given.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} has {count}" for name, count in counts.items())
        msg = f"--per-row needs as many rows of every input: {listed}"
        raise ConfigurationError(msg)
    total = next(iter(counts.values()), 0)
    if not total:
        msg = "--per-row: the inputs have no rows"
        raise ConfigurationError(msg)
    return [{name: array[row : row + 1] for name, array in given.items()} for row in range(total)]


async def ask_rows(
    client: InferenceClient, key: ModelVersion, rows: list[Arrays], sending: Sending, *, output: str, as_json: bool
) -> None:
    """Ask for every row and show the answers. Raises typer.Exit(1) when a row has none."""
    started, failed = time.monotonic(), 0
    answers = client.map(
        str(key),
        rows,
        in_flight=sending.in_flight,
        parameters=sending.parameters,
        ttl_seconds=sending.ttl_seconds,
        priority=sending.priority,
    )
    with OutputsFile(output) as file, _bar(str(key), len(rows)) as advance:
        row = 0
        async with aclosing(answers):
            async for response in answers:
                file.add(response)
                if response.error is not None:
                    failed += 1
                    if failed <= _SHOWN_ERRORS:
                        say_error(row, response)
                if as_json:
                    print_json_line(response_json(response))
                elif not output and response.error is None:
                    print(f"row {row}\n{outputs_text(response)}")
                advance()
                row += 1
    if failed > _SHOWN_ERRORS:
        say(f"{failed - _SHOWN_ERRORS:,} more failed")
    if not as_json:
        print(_summary(key, len(rows), failed, time.monotonic() - started))
    if failed:
        raise typer.Exit(1)


def say_error(row: int, response: Response) -> None:
    """Why a row has no answer, on standard error."""
    message = response.error.message if response.error is not None else ""
    print(f"row {row}: {response.status}: {message}", file=sys.stderr)


def _summary(key: ModelVersion, rows: int, failed: int, seconds: float) -> str:
    unit = "row" if rows == 1 else "rows"
    answered = f"{rows - failed:,} of {rows:,} {unit}" if failed else f"{rows:,} {unit}"
    rate = (rows - failed) / max(seconds, 1e-9)
    return f"{key} answered {answered} in {seconds:.1f} s, {rate:,.{0 if rate >= _FAST else 1}f} a second"


@contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on standard error, where that is a terminal."""
    screen = console(to_stderr=True)
    if not screen.is_terminal or screen.is_dumb_terminal:
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns: Any = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=screen, transient=True) as progress:
        bar = progress.add_task(title, total=total)
        yield lambda: progress.advance(bar)
