"""Models that are a Python class of their own.

    class Model:
        def load(self, context): ...        # optional; a ModelContext: folder, spec, threads, device
        def infer(self, inputs): ...        # or (self, inputs, parameters); arrays by name in, arrays by name out
                                            # with `streaming: true` a generator that yields those arrays
                                            # with `sequences:` it also takes `sequences`, a Sequence for each row
        def close(self): ...                # optional

The handler `module:Class` lives in the version's folder; `handlers` says how it is imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from typing import Any, Final

from contracts.errors import ModelLoadError
from contracts.messages import Parameters
from contracts.specs import ModelSpec
from workers.backends.base import CPU, Arrays, ModelContext, Sequence
from workers.backends.handlers import HandlerPackage, describe

DEFAULT_HANDLER: Final = "model:Model"
_Infer = Callable[[Arrays, Parameters, "list[Sequence] | tuple[()]"], Any]


class PythonBackend:
    """Runs the handler class of a version's folder."""

    def __init__(self) -> None:
        self.device = CPU
        self._package = HandlerPackage()
        self._handler: Any = None
        self._infer: _Infer | None = None

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
        self._infer = _calling(self._handler, f"{spec.key}: {class_name}", spec)

    def infer(self, inputs: Arrays, rows: int, parameters: Parameters) -> Arrays:
        """Call the handler."""
        if self._infer is None:
            raise RuntimeError("the model is not loaded")
        outputs: Arrays = self._infer(inputs, parameters, ())
        return outputs

    def step(self, inputs: Arrays, rows: int, parameters: Parameters, sequences: list[Sequence]) -> Arrays:
        """Call the handler with a step of a sequence for each row."""
        if self._infer is None:
            raise RuntimeError("the model is not loaded")
        outputs: Arrays = self._infer(inputs, parameters, sequences)
        return outputs

    def stream(
        self, inputs: Arrays, rows: int, parameters: Parameters
    ) -> Generator[object, frozenset[int] | None, object]:
        """Call the handler, which yields."""
        if self._infer is None:
            raise RuntimeError("the model is not loaded")
        steps: Generator[object, frozenset[int] | None, object] = self._infer(inputs, parameters, ())
        return steps

    def close(self) -> None:
        """Close the handler if it can be, and forget its modules."""
        handler, self._handler, self._infer = self._handler, None, None
        self._package.forget()
        if hasattr(handler, "close"):
            handler.close()


def _calling(handler: Any, name: str, spec: ModelSpec) -> _Infer:
    """How to call the handler's `infer`, decided once: with or without `parameters` and `sequences`."""
    infer = getattr(handler, "infer", None)
    if not callable(infer):
        raise ModelLoadError(f"{name} needs a method infer(self, inputs)")
    if inspect.iscoroutinefunction(infer) or inspect.isasyncgenfunction(infer):
        raise ModelLoadError(f"{name}.infer must be a plain method or a generator: async is not supported")
    if inspect.isgeneratorfunction(infer) != spec.streaming:
        fault = "does not yield, but model.yaml says" if spec.streaming else "yields: write"
        raise ModelLoadError(f"{name}.infer {fault} streaming: true")
    signature = inspect.signature(infer)
    takes_parameters = "parameters" in signature.parameters
    needed = {"sequences": ()} if spec.sequences is not None else {}
    try:
        signature.bind({}, **({"parameters": {}} if takes_parameters else {}), **needed)
    except TypeError as exc:
        more = ", *, sequences" if needed else ""
        raise ModelLoadError(
            f"{name}.infer must take (self, inputs{more}) or (self, inputs, parameters{more}), not {signature}"
        ) from exc
    if needed:
        if takes_parameters:
            return lambda inputs, parameters, sequences: infer(inputs, parameters=parameters, sequences=sequences)
        return lambda inputs, _, sequences: infer(inputs, sequences=sequences)
    if takes_parameters:
        return lambda inputs, parameters, _: infer(inputs, parameters=parameters)
    return lambda inputs, _parameters, _sequences: infer(inputs)
