"""A step before a streaming one."""

from __future__ import annotations

from typing import Any


class Scribe:
    """The handler that `model.yaml` names."""

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The plan as it is, and its first column."""
        return {"plan": inputs["plan"], "parts": inputs["plan"][:, :1].copy()}
