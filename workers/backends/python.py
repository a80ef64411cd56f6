"""Models that are a Python class of their own.

    class Model:
        def load(self, context): ...        # optional; a ModelContext: folder, spec, threads, device
        def infer(self, inputs): ...        # or (self, inputs, parameters); arrays by name in, arrays by name out
                                            # with `streaming: true` a generator that yields those arrays
                                            # with `sequences:` it also takes `sequences`, a Sequence for each row
        def close(self): ...                # optional

The handler `module:Class` lives in the version's folder. The folder is not put on the module search path, where two
models' files of one name would collide and a file could shadow a library. Instead it becomes a package of its own name,
so a handler imports the files beside it relatively: `from . import tokens`.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Generator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from contracts.errors import ModelLoadError
from contracts.messages import Parameters
from contracts.specs import ModelSpec
from workers.backends.base import CPU, Arrays, ModelContext, Sequence

DEFAULT_HANDLER: Final = "model:Model"
_Infer = Callable[[Arrays, Parameters, "list[Sequence] | tuple[()]"], Any]
_handler_form = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class PythonBackend:
    """Runs the handler class of a version's folder."""

    def __init__(self) -> None:
        self.device = CPU
        self._package = ""
        self._handler: Any = None
        self._infer: _Infer | None = None

    def load(self, context: ModelContext) -> None:
        """Import the module, make the handler, let it load."""
        spec, self.device = context.spec, context.device
        handler = spec.handler or DEFAULT_HANDLER
        if not _handler_form.fullmatch(handler):
            raise ModelLoadError(f"{spec.key}: handler {handler!r} must read module:Class, as in {DEFAULT_HANDLER}")
        module_name, _, class_name = handler.partition(":")
        module = self._import(context, module_name)
        kind = getattr(module, class_name, None)
        if not callable(kind):
            raise ModelLoadError(
                f"{spec.key}: {module_name}.py has no class {class_name}; correct handler: in model.yaml"
            )
        try:
            self._handler = kind()
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
        for name in [name for name in sys.modules if self._package and (name + ".").startswith(self._package + ".")]:
            del sys.modules[name]
        self._package = ""
        if hasattr(handler, "close"):
            handler.close()

    def _import(self, context: ModelContext, module_name: str) -> ModuleType:
        key, folder = context.spec.key, context.folder
        relative = Path(*module_name.split("."))
        if not (folder / relative.with_suffix(".py")).is_file() and not (folder / relative / "__init__.py").is_file():
            raise ModelLoadError(
                f"{key}: {folder} has no {relative.with_suffix('.py')}; put it there or correct handler: in model.yaml"
            )
        self._package = _package_of(context)
        try:
            return importlib.import_module(f"{self._package}.{module_name}")
        except BaseException as exc:
            msg = f"{key}: {module_name}.py could not be imported: {describe(exc, folder)}"
            if isinstance(exc, ModuleNotFoundError) and exc.name and (folder / f"{exc.name}.py").is_file():
                msg += f"; write `from . import {exc.name}` for a file beside it"
            raise ModelLoadError(msg) from exc


def _package_of(context: ModelContext) -> str:
    """Make the version's folder a package of a name that nothing else has."""
    name = re.sub(r"\W", "_", f"headrace_model_{context.spec.name}_{context.spec.version}")
    while name in sys.modules:
        name += "_"
    spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [str(context.folder)]
    sys.modules[name] = importlib.util.module_from_spec(spec)
    return name


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


def describe(exc: BaseException, folder: Path) -> str:
    """An exception in a line: its class, its text and the line of the model's own code where it came from."""
    own = [frame for frame in traceback.extract_tb(exc.__traceback__) if Path(frame.filename).is_relative_to(folder)]
    where = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{type(exc).__name__}: {exc}{where}"
