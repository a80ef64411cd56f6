"""The states of one model's sequences. Which of them are alive is the ingest process's to know; here they only lie."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from contracts.messages import SequenceStep
from workers.backends.base import Sequence as Step


class States:
    """States by the names of their sequences."""

    def __init__(self) -> None:
        self._by_name: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self._by_name)

    def of(self, steps: Sequence[SequenceStep], rows: int) -> list[Step]:
        """What the model is handed for a batch; rows that only fill it are sequences of nobody."""
        found = [Step(step.id, is_start=step.start, is_end=step.end, state=self._state_before(step)) for step in steps]
        return found + made_up(rows - len(found))

    def _state_before(self, step: SequenceStep) -> Any:
        return None if step.start else self._by_name[step.id]

    def keep(self, steps: Iterable[Step]) -> None:
        """The batch came to its end: this is what its steps left."""
        for step in steps:
            if step.is_end:
                self._by_name.pop(step.id, None)
            else:
                self._by_name[step.id] = step.state

    def forget(self, names: Iterable[str]) -> None:
        """Let go of states."""
        for name in names:
            self._by_name.pop(name, None)


def made_up(rows: int) -> list[Step]:
    """Steps of sequences that begin and end with them."""
    return [Step("", is_start=True, is_end=True) for _ in range(rows)]
