"""The step before the orientation model."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .strip import as_strip, open_crop

WIDTH: Final = 192


class View:
    """The handler that `model.yaml` names."""

    def infer(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Answer each `crop` with its `strip` and how much of it is `filled`."""
        strips, filled = zip(*(as_strip(open_crop(crop), WIDTH) for crop in inputs["crop"]), strict=True)
        return {"strip": np.stack(strips), "filled": np.array(filled, np.int64)}
