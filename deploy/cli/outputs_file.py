"""`headrace infer --output`: the outputs of each request as a line of JSON.

Nothing else is in the file, neither ids nor times: equal answers make equal files. Numbers are written with all their
digits.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self, TextIO

from contracts.errors import ConfigurationError
from deploy.cli.inputs import response_json

if TYPE_CHECKING:
    from contracts.messages import Response


class OutputsFile:
    """A file that answers are added to; none when it has no name."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._file: TextIO | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Open it. Raises ConfigurationError."""
        if self._name:
            try:
                self._file = self._stack.enter_context(Path(self._name).open("w", encoding="utf-8"))
            except OSError as exc:
                msg = f"--output {self._name} cannot be written: {exc.strerror}"
                raise ConfigurationError(msg) from exc
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self._stack.close()

    def add(self, response: Response) -> None:
        """Write a line: the outputs, or the error in their place."""
        if self._file is None:
            return
        whole = response_json(response)
        kept = {"outputs": whole["outputs"]}
        if response.error is not None:
            kept = {"status": whole["status"], "error": whole["error"]}
        self._file.write(json.dumps(kept, ensure_ascii=False) + "\n")
