"""Reading PyTorch artefacts. Four kinds, known by their content and by what model.yaml declares, not by their suffix:

    TorchScript archive     torch.jit.save                       code and weights
    exported program        torch.export.save                    code and weights
    AOTInductor package     torch._inductor.aoti_compile_and_package    machine code for one kind of device, and weights
    safetensors             with `handler: module:Class`         weights alone, for a torch.nn.Module beside model.yaml

A pickled module is refused, because unpickling runs whatever the file says.

A declared module of a streaming model has a method `generate` that yields, or its `forward` does.
"""

from __future__ import annotations

import inspect
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from contracts.errors import ModelLoadError
from contracts.specs import ModelSpec
from workers.backends.base import ModelContext
from workers.backends.handlers import HandlerPackage


def read_program(context: ModelContext, target: torch.device, package: HandlerPackage) -> Any:
    """What can be called with the inputs, on its device. Raises ModelLoadError, or what torch raises."""
    path = context.artefact
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; its models are served as long as torch reads them
        if context.spec.handler:
            return _declared_module(context, path, target, package)
        return _archive(path, target)


def _archive(path: Path, target: torch.device) -> Any:
    jit: Any = torch.jit  # untyped where torch brings types
    names = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
    parts = {part for name in names for part in name.split("/")}
    if "aotinductor" in parts:
        return _compiled(path, target)
    if "archive_format" in parts:
        return torch.export.load(path).module().to(target)
    if "constants.pkl" in parts:
        return jit.load(path, map_location=target).eval()
    raise ModelLoadError(
        f"{path} is neither a TorchScript archive (torch.jit.save) nor a torch.export program (torch.export.save) nor "
        "an AOTInductor package; export the model as one of them, or save its weights as safetensors and name its "
        "class in handler:"
    )


def _compiled(path: Path, target: torch.device) -> Any:
    inductor: Any = torch._inductor  # noqa: SLF001 - the place where torch documents it
    program = inductor.aoti_load_package(str(path))
    compiled_for = program.get_metadata().get("AOTI_DEVICE_KEY", target.type)
    if compiled_for != target.type:
        raise ModelLoadError(
            f"{path} was compiled for {compiled_for}, but this worker's device is {target.type}: compile it there, or "
            f"ask for that kind of device in the deployment"
        )
    return program


def _declared_module(context: ModelContext, path: Path, target: torch.device, package: HandlerPackage) -> Any:
    key = context.spec.key
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as exc:
        raise ModelLoadError(f"{key}: safetensors is not installed; install headrace with the extra torch") from exc
    module = package.make(context, context.spec.handler)
    if not isinstance(module, torch.nn.Module):
        raise ModelLoadError(f"{key}: {context.spec.handler} must be a torch.nn.Module, not a {type(module).__name__}")
    try:
        weights = load_file(path, device=str(target))
    except SafetensorError as exc:
        raise ModelLoadError(f"{key}: {path.name} is no safetensors file: {exc}") from exc
    found = module.to(target).load_state_dict(weights, strict=False)
    faults = [f"it lacks {', '.join(found.missing_keys)}"] if found.missing_keys else []
    faults += [f"it has {', '.join(found.unexpected_keys)} too many"] if found.unexpected_keys else []
    if faults:
        raise ModelLoadError(f"{key}: {path.name} does not fit {context.spec.handler}: {'; '.join(faults)}")
    return module.eval()


def entry(spec: ModelSpec, program: Any) -> Any:
    """What to call: the program, or what begins a stream of it. Raises ModelLoadError when spec and module disagree."""
    forward_yields = inspect.isgeneratorfunction(getattr(program, "forward", None))
    if not spec.streaming:
        if forward_yields:
            raise ModelLoadError(f"{spec.key}: {spec.handler}.forward yields: write streaming: true in model.yaml")
        return program
    generate = getattr(program, "generate", None)
    if inspect.isgeneratorfunction(generate):
        return generate
    if not forward_yields:
        raise ModelLoadError(
            f"{spec.key}: model.yaml says streaming: true, but neither {spec.handler}.generate nor .forward yields"
        )
    return program
