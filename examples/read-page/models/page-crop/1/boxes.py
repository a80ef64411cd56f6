"""From a map of likelihoods to boxes: the second half of the detector (differentiable binarization).

Every blob of likely pixels becomes its smallest rectangle, at any angle. The network was trained to mark shrunken
blobs, so each rectangle is grown again, by its area over its circumference.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import cv2
import numpy as np
import pyclipper
from numpy.typing import NDArray
from shapely.geometry import Polygon

LIKELY: Final = 0.3  # a pixel is text from here on
LEAST_MEAN: Final = 0.5  # a box is one when its pixels are that likely on average
MOST_BOXES: Final = 1000
LEAST_SIDE: Final = 3  # pixels; what is thinner is dirt
GROWTH: Final = 1.6
SAME_LINE: Final = 10  # boxes whose tops are closer than that are read from left to right

Box = NDArray[np.float32]
_spread: Final = np.ones((2, 2), np.uint8)


def find_boxes(text: NDArray[np.float32], width: int, height: int) -> list[Box]:
    """The boxes of a map in reading order, each [4, 2] clockwise from the top left, in a picture of that size."""
    found = (_clipped(_clockwise(box), width, height) for box in _rectangles(text, width, height))
    return in_reading_order([box for box in found if min(_sides(box)) > LEAST_SIDE])


def _rectangles(text: NDArray[np.float32], width: int, height: int) -> Iterator[Box]:
    # A pixel spreads to its right and lower neighbour, so that hair lines do not break.
    blobs: Any = cv2.dilate((text > LIKELY).astype(np.uint8), _spread)
    contours, _ = cv2.findContours(blobs * 255, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    for contour in contours[:MOST_BOXES]:
        inner, side = _smallest_rectangle(contour)
        if side < LEAST_SIDE or _mean_inside(text, inner) < LEAST_MEAN:
            continue
        box, side = _smallest_rectangle(_grown(inner))
        if side < LEAST_SIDE + 2:
            continue
        box[:, 0] = np.clip(np.round(box[:, 0] / text.shape[1] * width), 0, width)
        box[:, 1] = np.clip(np.round(box[:, 1] / text.shape[0] * height), 0, height)
        yield np.trunc(box)


def _smallest_rectangle(points: Any) -> tuple[Box, float]:
    """The smallest rectangle around points, clockwise from its upper left corner, and its shorter side."""
    rectangle: Any = cv2.minAreaRect(points)
    corners = sorted(np.asarray(cv2.boxPoints(rectangle)), key=lambda corner: corner[0])
    (upper_left, lower_left), (upper_right, lower_right) = _by_height(corners[:2]), _by_height(corners[2:])
    return np.array([upper_left, upper_right, lower_right, lower_left]), min(rectangle[1])


def _by_height(pair: list[Any]) -> tuple[Any, Any]:
    first, second = pair
    return (first, second) if second[1] > first[1] else (second, first)


def _mean_inside(text: NDArray[np.float32], box: Box) -> float:
    height, width = text.shape
    left, top = np.clip(np.floor(box.min(axis=0)).astype(int), 0, (width - 1, height - 1))
    right, bottom = np.clip(np.ceil(box.max(axis=0)).astype(int), 0, (width - 1, height - 1))
    inside = np.zeros((bottom - top + 1, right - left + 1), np.uint8)
    cv2.fillPoly(inside, [(box - np.array([left, top], np.float32)).astype(np.int32)], 1)
    return float(cv2.mean(text[top : bottom + 1, left : right + 1], inside)[0])


def _grown(box: Box) -> Any:
    shape = Polygon(box)
    offset: Any = pyclipper.PyclipperOffset()
    offset.AddPath(box, pyclipper.JT_ROUND, pyclipper.ET_CLOSEDPOLYGON)
    return np.array(offset.Execute(shape.area * GROWTH / shape.length)).reshape(-1, 1, 2)


def _clockwise(box: Box) -> Box:
    """The same corners from the upper left on, after rounding may have changed their order."""
    by_side = box[np.argsort(box[:, 0])]
    left, right = by_side[:2], by_side[2:]
    left, right = left[np.argsort(left[:, 1])], right[np.argsort(right[:, 1])]
    return np.array([left[0], right[0], right[1], left[1]], np.float32)


def _clipped(box: Box, width: int, height: int) -> Box:
    return np.trunc(np.clip(box, 0, (width - 1, height - 1))).astype(np.float32)


def _sides(box: Box) -> tuple[int, int]:
    return int(np.linalg.norm(box[0] - box[1])), int(np.linalg.norm(box[0] - box[3]))


def in_reading_order(boxes: list[Box]) -> list[Box]:
    """From top to bottom; boxes beside each other from left to right."""
    ordered = sorted(boxes, key=lambda box: (box[0][1], box[0][0]))
    for start in range(len(ordered) - 1):
        for at in range(start, -1, -1):
            upper, lower = ordered[at][0], ordered[at + 1][0]
            if abs(lower[1] - upper[1]) >= SAME_LINE or lower[0] >= upper[0]:
                break
            ordered[at], ordered[at + 1] = ordered[at + 1], ordered[at]
    return ordered
