"""`headrace infer --output`: the outputs of each request as a line of JSON.

Nothing else is in the file, neither ids nor times: equal answers make equal files. Numbers are written with all their
digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self, TextIO

from contracts.errors import ConfigurationError
from deploy.cli.inputs import response_json
from deploy.cli.output import json_text

if TYPE_CHECKING:
    from contracts.messages import Response


class OutputsFile:
    """A file that answers are added to; none when it has no name. What it had before is gone with the first of them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._file: TextIO | None = None
        self._is_fresh = True

    def __enter__(self) -> Self:
        """Open it. Raises ConfigurationError."""
        if self._name:
            with self._explained():
                self._file = Path(self._name).open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        """Close it. Raises ConfigurationError when what is still to be written cannot be."""
        if self._file is not None:
            with self._explained():
                self._file.close()

    def add(self, response: Response) -> None:
        """Write a line: the outputs, or the error in their place. Raises ConfigurationError."""
        if self._file is None:
            return
        whole = response_json(response)
        kept = {"outputs": whole["outputs"]}
        if response.error is not None:
            kept = {"status": whole["status"], "error": whole["error"]}
        with self._explained():
            if self._is_fresh and Path(self._name).is_file():  # a pipe or a terminal has nothing to forget
                self._file.truncate(0)
            self._is_fresh = False
            self._file.write(json_text(kept, ensure_ascii=False) + "\n")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as exc:
            msg = f"--output {self._name} cannot be written: {exc.strerror}"
            raise ConfigurationError(msg) from exc
