"""Code that a model brings along: a class in the version's folder.

The folder is not put on the module search path, where two models' files of one name would collide and a file could
shadow a library. Instead it becomes a package of its own name, so a handler imports the files beside it relatively:
`from . import tokens`.

Its bytecode is compiled each time and never read from `__pycache__`: what was registered, and is checked before the
load, are the sources.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from contracts.errors import ModelLoadError
from workers.backends.base import ModelContext

_handler_form: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class _FromSource(importlib.machinery.SourceFileLoader):
    def path_stats(self, path: Any) -> Any:
        raise OSError("bytecode of models is neither read nor written")


class HandlerPackage:
    """The package that one version's folder becomes, as long as its model is loaded."""

    def __init__(self) -> None:
        self._name = ""

    def make(self, context: ModelContext, handler: str) -> Any:
        """An instance of the class `module:Class`, made without arguments. Raises ModelLoadError."""
        key, folder = context.spec.key, context.folder
        if not _handler_form.fullmatch(handler):
            raise ModelLoadError(f"{key}: handler {handler!r} must read module:Class, as in model:Model")
        module_name, _, class_name = handler.partition(":")
        kind = getattr(self._import(context, module_name), class_name, None)
        if not callable(kind):
            raise ModelLoadError(f"{key}: {module_name}.py has no class {class_name}; correct handler: in model.yaml")
        try:
            return kind()
        except BaseException as exc:
            raise ModelLoadError(f"{key}: {class_name} could not be loaded: {describe(exc, folder)}") from exc

    def forget(self) -> None:
        """Forget the package's modules."""
        for name in [name for name in sys.modules if self._name and (name + ".").startswith(self._name + ".")]:
            del sys.modules[name]
        self._name = ""

    def _import(self, context: ModelContext, module_name: str) -> ModuleType:
        key, folder = context.spec.key, context.folder
        relative = Path(*module_name.split("."))
        if not (folder / relative.with_suffix(".py")).is_file() and not (folder / relative / "__init__.py").is_file():
            raise ModelLoadError(
                f"{key}: {folder} has no {relative.with_suffix('.py')}; put it there or correct handler: in model.yaml"
            )
        self._name = _package_of(context)
        try:
            return importlib.import_module(f"{self._name}.{module_name}")
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
    sys.path_hooks.insert(0, _finder_below(str(context.folder)))
    sys.path_importer_cache.pop(str(context.folder), None)
    spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [str(context.folder)]
    sys.modules[name] = importlib.util.module_from_spec(spec)
    return name


def _finder_below(root: str) -> Callable[[str], importlib.machinery.FileFinder]:
    """How modules are found in a version's folder, and in those inside of it."""

    def finder(path: str) -> importlib.machinery.FileFinder:
        if not Path(path).is_relative_to(root):
            raise ImportError("not a folder of this model")
        extensions = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
        return importlib.machinery.FileFinder(path, extensions, (_FromSource, importlib.machinery.SOURCE_SUFFIXES))

    return finder


def describe(exc: BaseException, folder: Path) -> str:
    """An exception in a line: its class, its text and the line of the model's own code where it came from."""
    own = [frame for frame in traceback.extract_tb(exc.__traceback__) if Path(frame.filename).is_relative_to(folder)]
    where = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{type(exc).__name__}: {exc}{where}"
