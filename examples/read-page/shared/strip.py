"""A crop as the pixels that a line model takes: of one height, as wide as they come, blank behind.

The models' graphs turn pixels into numbers themselves and blank what is behind the line, so that pixels travel as the
bytes they are, a quarter of the size.
"""

from __future__ import annotations

import math
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from headrace import InvalidRequest

HEIGHT: Final = 48

Pixels = NDArray[np.uint8]


def open_crop(content: bytes) -> Pixels:
    """The pixels of a PNG, BGR. Raises InvalidRequest."""
    found: Any = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    if found is None:
        msg = "a crop is no image"
        raise InvalidRequest(msg)
    return np.asarray(found, np.uint8)


def as_strip(crop: Pixels, width: int) -> tuple[Pixels, int]:
    """A crop scaled to a strip [48, width, 3], and how much of the width it fills."""
    filled = min(math.ceil(HEIGHT * (crop.shape[1] / crop.shape[0])), width)
    strip = np.zeros((HEIGHT, width, 3), np.uint8)
    strip[:, :filled] = cv2.resize(crop, (filled, HEIGHT))
    return strip, filled
