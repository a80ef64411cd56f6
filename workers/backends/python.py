"""Models that are a Python class of their own.

    class Model:
        def load(self, context): ...        # optional; a ModelContext: folder, spec, threads, device
        def infer(self, inputs): ...        # or (self, inputs, parameters); arrays by name in, arrays by name out
        def close(self): ...                # optional

The handler `module:Class` lives in the version's folder; `handlers` says how it is imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final

from contracts.errors import ModelLoadError
from contracts.messages import Parameters
from workers.backends.base import CPU, Arrays, ModelContext
from workers.backends.handlers import HandlerPackage, describe

DEFAULT_HANDLER: Final = "model:Model"


class PythonBackend:
    """Runs the handler class of a version's folder."""

    def __init__(self) -> None:
        self.device = CPU
        self._package = HandlerPackage()
        self._handler: Any = None
        self._infer: Callable[[Arrays, Parameters], Arrays] | None = None

    def load(self, context: ModelContext) -> None:
        """Import the module, make the handler, let it load."""
        spec, self.device = context.spec, context.device
        handler = spec.handler or DEFAULT_HANDLER
        self._handler = self._package.make(context, handler)
        class_name = type(self._handler).__name__
        try:
            if hasattr(self._handler, "load"):
                self._handler.load(context)
        except BaseException as exc:
            raise ModelLoadError(
                f"{spec.key}: {class_name} could not be loaded: {describe(exc, context.folder)}"
            ) from exc
        self._infer = _calling(self._handler, f"{spec.key}: {class_name}")

    def infer(self, inputs: Arrays, rows: int, parameters: Parameters) -> Arrays:
        """Call the handler."""
        if self._infer is None:
            raise RuntimeError("the model is not loaded")
        return self._infer(inputs, parameters)

    def close(self) -> None:
        """Close the handler if it can be, and forget its modules."""
        handler, self._handler, self._infer = self._handler, None, None
        self._package.forget()
        if hasattr(handler, "close"):
            handler.close()


def _calling(handler: Any, name: str) -> Callable[[Arrays, Parameters], Arrays]:
    """How to call the handler's `infer`, decided once: with or without the argument `parameters`."""
    infer = getattr(handler, "infer", None)
    if not callable(infer):
        raise ModelLoadError(f"{name} needs a method infer(self, inputs)")
    if inspect.iscoroutinefunction(infer) or inspect.isasyncgenfunction(infer) or inspect.isgeneratorfunction(infer):
        raise ModelLoadError(
            f"{name}.infer must be a plain method that returns a dict: async and yield are not supported"
        )
    signature = inspect.signature(infer)
    takes_parameters = "parameters" in signature.parameters
    try:
        signature.bind({}, **({"parameters": {}} if takes_parameters else {}))
    except TypeError as exc:
        raise ModelLoadError(
            f"{name}.infer must take (self, inputs) or (self, inputs, parameters), not {signature}"
        ) from exc
    if takes_parameters:
        return lambda inputs, parameters: infer(inputs, parameters=parameters)
    return lambda inputs, _: infer(inputs)
