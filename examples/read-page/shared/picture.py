"""A page's bytes as the picture that boxes are found in and crops are cut from.

Two steps need it, the one before the detector and the one behind it. Each decodes the page for itself: as a file it is
twenty times smaller than as pixels, and it is the file that travels.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any, Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from headrace import InvalidRequest

LONGEST_SIDE: Final = 2000
SHORTEST_SIDE: Final = 30
FLATTEST: Final = 8  # wider pages than 8:1 are framed, the detector has seen none
GRAIN: Final = 32  # the detector halves its picture five times

Pixels = NDArray[np.uint8]


class Picture(NamedTuple):
    """Pixels in BGR, and what leads from their coordinates back to those of the page."""

    pixels: Pixels
    scale: tuple[float, float]
    """Page over picture, across and down."""
    border: int
    """Rows added above, and as many below."""
    page: tuple[int, int]
    """The page's own width and height."""


def open_page(content: bytes) -> Picture:
    """Decode a page, and bring it within the sizes that the models were made for. Raises InvalidRequest."""
    pixels = _decoded(content)
    height, width = pixels.shape[:2]
    scaled = np.ascontiguousarray(pixels)
    if max(height, width) > LONGEST_SIDE:
        scaled = scale_to_grain(scaled, LONGEST_SIDE / max(height, width))
    if min(scaled.shape[:2]) < SHORTEST_SIDE:
        scaled = scale_to_grain(scaled, SHORTEST_SIDE / min(scaled.shape[:2]))
    scale = (width / scaled.shape[1], height / scaled.shape[0])
    border = _border(*scaled.shape[:2])
    if border:
        scaled = np.pad(scaled, ((border, border), (0, 0), (0, 0)))
    return Picture(scaled, scale, border, (width, height))


def _decoded(content: bytes) -> Pixels:
    try:
        with Image.open(BytesIO(content)) as image:
            return np.asarray(image.convert("RGB"))[:, :, ::-1]
    except UnidentifiedImageError:
        msg = f"the page is no picture: its {len(content)} bytes are neither PNG nor JPEG nor another known format"
    except (OSError, Image.DecompressionBombError) as exc:
        msg = f"the page's picture cannot be decoded: {exc}"
    raise InvalidRequest(msg)


def _border(height: int, width: int) -> int:
    if height > SHORTEST_SIDE and width / height <= FLATTEST:
        return 0
    wanted = 2 * max(width // FLATTEST, SHORTEST_SIDE)
    return abs(wanted - height) // 2


def scale_to_grain(pixels: Pixels, factor: float) -> Pixels:
    """Scale by about `factor`, to sides that are multiples of the detector's grain. Raises InvalidRequest."""
    height, width = (round(int(side * factor) / GRAIN) * GRAIN for side in pixels.shape[:2])
    if not height or not width:
        msg = f"a page of {pixels.shape[1]} by {pixels.shape[0]} pixels leaves nothing to read at the detector's scale"
        raise InvalidRequest(msg)
    resized: Any = cv2.resize(pixels, (width, height))
    return np.asarray(resized, np.uint8)
