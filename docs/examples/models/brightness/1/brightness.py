"""The model of docs/getting-started.md: a class that gets a batch and gives one row for each of its rows."""

import numpy as np


class Brightness:
    """The handler that `model.yaml` names."""

    def infer(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Called with whole batches, which may hold rows of many requests."""
        image = inputs["image"]
        return {"mean": image.mean(axis=1), "range": np.stack([image.min(axis=1), image.max(axis=1)], axis=1)}
