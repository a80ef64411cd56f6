"""What commands print: tables for people, JSON for scripts, and nothing on standard output but the result."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_PIPE_WIDTH = 160  # nobody's terminal: wide enough that no cell is wrapped


def console(*, to_stderr: bool = False) -> Console:
    """Where people read: as wide as their terminal, without colours where there is none."""
    from rich.console import Console

    stream = sys.stderr if to_stderr else sys.stdout
    return Console(
        file=stream, highlight=False, markup=False, emoji=False, width=None if stream.isatty() else _PIPE_WIDTH
    )


def table(*columns: str, rows: Sequence[Sequence[object]], title: str = "") -> Table:
    """A plain table; columns whose name starts with `>` are aligned to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False, title_style="bold")
    for column in columns:
        made.add_column(
            column.removeprefix(">"), justify="right" if column.startswith(">") else "left", overflow="fold"
        )
    for row in rows:
        made.add_row(*(str(cell) for cell in row))
    return made


def json_text(value: Any, *, indent: int | None = None, ensure_ascii: bool = True) -> str:
    """JSON as every program reads it: numbers that it does not have (NaN, infinities) are null."""
    try:
        return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(member) for member in value]
    return value


def print_json(value: Any) -> None:
    """One JSON document."""
    print(json_text(value, indent=2))


def print_json_line(value: Any) -> None:
    """One JSON document on a line of its own, of several."""
    print(json_text(value))


def say(line: str) -> None:
    """A line about what is going on, apart from the result."""
    print(line, file=sys.stderr, flush=True)
