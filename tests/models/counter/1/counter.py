"""Counts, and does on the way what a request's `plan` says: parts, trouble, the step at which it comes, a figure."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np

from headrace import InvalidRows

NOTHING, RAISE, KILL_ONCE, KILL_AND_DIFFER, SLOW, BULKY, KILL, REFUSE = range(8)


class Counter:
    def load(self, context: Any) -> None:
        self.folder: Path = context.folder

    def infer(self, inputs: dict[str, Any]) -> Generator[Any, frozenset[int], None]:
        plan, step = inputs["plan"].copy(), 0
        alive = {row for row in range(len(plan)) if plan[row, 0] > 0}
        try:
            while alive:
                refused = {row: f"no more than {step}" for row in alive if plan[row, 1:3].tolist() == [REFUSE, step]}
                if refused:
                    raise InvalidRows(refused)
                for row in alive:
                    self._trouble(plan[row].tolist(), step)
                last = sorted(row for row in alive if plan[row, 0] == step + 1)
                more = sorted(alive - {*last})
                gone: set[int] = set()
                if more:
                    gone |= yield self._part(plan[more], step), more
                if last:
                    gone |= yield self._part(plan[last], step), last, True
                alive -= gone | {*last}
                step += 1
        finally:
            (self.folder / "steps").write_text(str(step))

    def _part(self, plans: Any, step: int) -> dict[str, Any]:
        differs = plans[:, 1] == KILL_AND_DIFFER
        numbers = step + 1000 * (differs & (self.folder / f"killed-{KILL_AND_DIFFER}").exists())
        filler = [b"x" * (plan[3] if plan[1] == BULKY else 0) for plan in plans.tolist()]
        return {"number": numbers.reshape(-1, 1), "filler": np.array(filler, dtype=object)}

    def _trouble(self, plan: list[int], step: int) -> None:
        _, trouble, at, figure = plan
        if trouble == SLOW:
            time.sleep(figure / 1000)
        if step != at:
            return
        if trouble == RAISE:
            raise ValueError("as it was asked to")
        marker = self.folder / f"killed-{trouble}"
        if trouble == KILL or (trouble in {KILL_ONCE, KILL_AND_DIFFER} and not marker.exists()):
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
