"""The step before the detector: pixels whose shorter side is long enough for small print."""

from __future__ import annotations

from typing import Any, Final

from numpy.typing import NDArray

from .picture import open_page, scale_to_grain

SIDE: Final = 736


class Scale:
    """The handler that `model.yaml` names."""

    def infer(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Answer the file `page` with its pixels `picture`, BGR."""
        pixels = open_page(inputs["page"][0]).pixels
        return {"picture": scale_to_grain(pixels, max(1.0, SIDE / min(pixels.shape[:2])))[None]}
