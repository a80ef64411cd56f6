"""The step between orientation and recognition."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .strip import as_strip, open_crop

UPSIDE_DOWN: Final = 1  # the second of the two odds
SURE: Final = 0.9


class Straight:
    """The handler that `model.yaml` names."""

    def infer(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Answer a `crop`, the `width` of its strip and the `odds` of its orientation with `strip` and `filled`."""
        crop, odds = open_crop(inputs["crop"][0]), inputs["odds"][0]
        if odds.argmax() == UPSIDE_DOWN and odds[UPSIDE_DOWN] > SURE:
            crop = np.ascontiguousarray(crop[::-1, ::-1])
        strip, filled = as_strip(crop, int(inputs["width"][0]))
        return {"strip": strip[None], "filled": np.array([filled], np.int64)}
