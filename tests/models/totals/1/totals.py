"""Adds up what each sequence brings; -1 raises after the state was set, -2 ends the engine."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np


class Totals:
    def infer(self, inputs: dict[str, Any], *, sequences: list[Any]) -> dict[str, Any]:
        names = [sequence.id for sequence in sequences]
        assert len({*names} - {""}) == len(names) - names.count(""), "two steps of one sequence in a batch"
        for (value,), sequence in zip(inputs["value"].tolist(), sequences, strict=True):
            if value == -2:
                os.kill(os.getpid(), signal.SIGKILL)
            sequence.state = (sequence.state or 0) + value
        if -1 in inputs["value"]:
            raise ValueError("as it was asked to")
        totals = [[sequence.state] for sequence in sequences]
        return {"total": np.array(totals, np.float32), "ids": np.array(names, dtype=object)}
