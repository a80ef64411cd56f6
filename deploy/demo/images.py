"""The input of the demo: 1,797 handwritten digits of the UCI set, and where its fleet lies."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

import deploy

FLEET_FOLDER = Path(deploy.__file__).resolve().parent / "fleet"
FLEET_FILE = FLEET_FOLDER / "fleet.yaml"


class Digits(NamedTuple):
    """Images as rows of 64 pixels, the digit that each shows, and which of them no model was trained on."""

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]
    held_out: npt.NDArray[np.bool_]


def load_digits() -> Digits:
    """The whole set."""
    with np.load(FLEET_FOLDER / "digits.npz", allow_pickle=False) as content:
        return Digits(content["images"].astype(np.float32), content["labels"], content["held_out"])
