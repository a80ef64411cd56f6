"""Adapters to the libraries that run models, one per kind of artefact; only the engine imports them."""

from __future__ import annotations

from typing import Literal

from contracts.errors import ModelLoadError
from workers.backends.base import Backend


def new_backend(kind: Literal["onnx", "python", "torch"]) -> Backend:
    """A backend of that kind, its library imported now and not before; ModelLoadError when it is not installed."""
    try:
        match kind:
            case "python":
                from workers.backends.python import PythonBackend

                return PythonBackend()
            case "onnx":
                from workers.backends.onnx import OnnxBackend

                return OnnxBackend()
            case "torch":
                from workers.backends.pytorch import TorchBackend

                return TorchBackend()
    except ImportError as exc:
        extras = {"onnx": "cpu (or gpu)", "torch": "torch (or gpu)"}
        raise ModelLoadError(
            f"the {kind} backend cannot be used here: {exc}; install headrace with the extra {extras.get(kind, kind)}"
        ) from exc
