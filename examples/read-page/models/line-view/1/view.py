"""The step before the orientation model."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from headrace import InvalidRequest, InvalidRows

from .strip import as_strip, open_crop

WIDTH: Final = 192


class View:
    """The handler that `model.yaml` names."""

    def infer(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Answer each `crop` with its `strip` and how much of it is `filled`."""
        crops, faults = [], {}
        for row, content in enumerate(inputs["crop"]):
            try:
                crops.append(open_crop(content))
            except InvalidRequest as exc:
                faults[row] = str(exc)
        if faults:  # crops of many pages share a batch
            raise InvalidRows(faults)
        strips, filled = zip(*(as_strip(crop, WIDTH) for crop in crops), strict=True)
        return {"strip": np.stack(strips), "filled": np.array(filled, np.int64)}
