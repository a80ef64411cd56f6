"""The step behind the detector: how many lines there are is known only now, and each goes its own way from here.

A crop travels as a PNG: it loses nothing, it is small, and crops of all sizes fit one tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from .boxes import Box, find_boxes
from .picture import Picture, Pixels, open_page

HEIGHT: Final = 48  # of what the recognizer reads
NARROWEST: Final = 320 / HEIGHT
TOGETHER: Final = 6  # lines of similar width that are padded to one width
UPRIGHT: Final = 1.5  # what is that much higher than wide is a line that stands on its side


class Crop:
    """The handler that `model.yaml` names."""

    def infer(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Answer a `page` and its map `text` with the tensors `crop`, `width` and `box` of its lines."""
        picture = open_page(inputs["page"][0])
        height, width = picture.pixels.shape[:2]
        boxes = find_boxes(inputs["text"][0], width, height)
        crops = [cut(picture.pixels, box) for box in boxes]
        files = np.empty((1, len(crops)), object)
        files[0] = [_as_png(crop) for crop in crops]
        box = np.array(boxes, np.float32).reshape(1, -1, 4, 2)
        return {"crop": files, "width": strip_widths(crops)[None], "box": on_page(box, picture)}


def cut(pixels: Pixels, box: Box) -> Pixels:
    """What is inside a box, made rectangular, and turned so that it is not much higher than wide."""
    width = int(max(np.linalg.norm(box[0] - box[1]), np.linalg.norm(box[2] - box[3])))
    height = int(max(np.linalg.norm(box[0] - box[3]), np.linalg.norm(box[1] - box[2])))
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    transform = cv2.getPerspectiveTransform(box, corners)
    flat: Any = cv2.warpPerspective(
        pixels, transform, (width, height), borderMode=cv2.BORDER_REPLICATE, flags=cv2.INTER_CUBIC
    )
    return np.rot90(flat) if height / width >= UPRIGHT else flat


def strip_widths(crops: Sequence[Pixels]) -> NDArray[np.int64]:
    """How wide each line is made for the recognizer, whose result depends a little on the blank behind the line.

    Lines are sorted by their shape and share the width of the widest of their group, as in the library whose results
    these are compared with. Equal widths are what lets lines share a batch, too.
    """
    shapes = np.array([crop.shape[1] / crop.shape[0] for crop in crops])
    order = np.argsort(shapes)
    widths = np.zeros(len(crops), np.int64)
    for start in range(0, len(crops), TOGETHER):
        group = order[start : start + TOGETHER]
        widths[group] = int(HEIGHT * max(NARROWEST, *shapes[group]))
    return widths


def on_page(box: NDArray[np.float32], picture: Picture) -> NDArray[np.float32]:
    """Boxes in the coordinates of the page as it was sent."""
    moved = (box - np.array([0, picture.border], np.float32)) * np.array(picture.scale, np.float32)
    return np.clip(moved, 0, picture.page).astype(np.float32)


def _as_png(crop: Pixels) -> bytes:
    done, content = cv2.imencode(".png", crop)
    if not done:
        msg = f"a crop of {crop.shape} could not be written as PNG"
        raise ValueError(msg)
    return content.tobytes()
