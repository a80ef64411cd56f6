"""Which of ONNX Runtime's execution providers run a graph, and with which options: pure.

    lease     asked for              providers
    CPU       auto, cpu              CPU                        anything else is refused
    GPU       auto, cuda             CUDA, then CPU             refused when ONNX Runtime has no CUDA provider
    GPU       tensorrt               TensorRT, CUDA, CPU        without TensorRT CUDA, and a warning
    GPU       cpu                    CPU                        the spec says so, so the GPU idles knowingly

The CPU behind a GPU provider is for nodes that the GPU has no kernel for. A GPU lease is never served by the CPU alone
unless the spec asks for it: that would hold a device for nothing, at a fraction of the speed, without anybody noticing.
TensorRT has to be asked for. It compiles a graph for minutes, and computes FP32 in TF32 where the device has it.

What the options do on a device has been read, not measured.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

from contracts.specs import ModelSpec
from contracts.tensors import BYTES

CPU_PROVIDER: Final = "CPUExecutionProvider"
CUDA_PROVIDER: Final = "CUDAExecutionProvider"
TENSORRT_PROVIDER: Final = "TensorrtExecutionProvider"

Asked = Literal["auto", "cpu", "cuda", "tensorrt"]
Options = dict[str, str]


class Refused(ValueError):
    """The providers that are asked for cannot serve this lease; says what to change."""


class Choice(NamedTuple):
    """Providers in the order in which they take nodes, and what is worth a warning."""

    providers: tuple[str, ...]
    warning: str = ""


def choose(asked: Asked, available: Collection[str], *, on_gpu: bool) -> Choice:
    """The providers for a lease. Raises Refused."""
    if not on_gpu:
        if asked not in ("auto", "cpu"):
            raise Refused(
                f"onnx: {{provider: {asked}}} needs a GPU, but the lease has none: deploy with device: {{kind: gpu}}"
            )
        return Choice((CPU_PROVIDER,))
    if asked == "cpu":
        return Choice((CPU_PROVIDER,), "the lease's GPU is not used, since model.yaml asks for the CPU provider")
    if CUDA_PROVIDER not in available:
        raise Refused(
            "the lease has a GPU, but this ONNX Runtime has no CUDA provider: install headrace with the extra gpu (and "
            "not cpu), ask for device: {kind: cpu} in the deployment, or write onnx: {provider: cpu} into model.yaml"
        )
    on_cuda = (CUDA_PROVIDER, CPU_PROVIDER)
    if asked != "tensorrt":
        return Choice(on_cuda)
    if TENSORRT_PROVIDER not in available:
        return Choice(on_cuda, "this ONNX Runtime has no TensorRT provider; CUDA serves in its place")
    return Choice((TENSORRT_PROVIDER, *on_cuda))


def verify(wanted: Sequence[str], taken: Sequence[str]) -> str:
    """Hold what a session really has against what was wanted: a warning, or nothing. Raises Refused.

    ONNX Runtime goes on without a provider whose libraries it cannot load, and says so on its standard error only.
    """
    missing = [name for name in wanted if name not in taken]
    if CUDA_PROVIDER in missing:
        raise Refused(
            "ONNX Runtime could not start its CUDA provider: its CUDA or cuDNN libraries are missing or of another "
            "version than it was built for; the engine's log has ONNX Runtime's own words"
        )
    return "ONNX Runtime could not start its TensorRT provider; CUDA serves in its place" if missing else ""


def options(provider: str, spec: ModelSpec, cache: Path | None) -> Options:
    """A provider's options; `cache` is where compiled engines may be kept. Raises Refused."""
    if provider == CUDA_PROVIDER:
        return {
            "device_id": "0",  # an engine sees the device of its lease and no other
            "arena_extend_strategy": "kSameAsRequested",  # not the next power of two: others share the device
            "cudnn_conv_algo_search": "HEURISTIC",  # the default tries every algorithm for each new shape
            "do_copy_in_default_stream": "1",
        }
    return _tensorrt(spec, cache) if provider == TENSORRT_PROVIDER else {}


def _tensorrt(spec: ModelSpec, cache: Path | None) -> Options:
    """An engine for all batch sizes, built at load; without a profile it would be built again under load."""
    numeric = [tensor for tensor in spec.inputs if tensor.datatype != BYTES]
    loose = [tensor.name for tensor in numeric if -1 in tensor.shape[1:]]
    if loose:
        raise Refused(
            f"TensorRT builds its engine for known shapes, but input {loose[0]!r} has open dimensions behind the "
            "first: fix them in model.yaml, or use onnx: {provider: cuda}"
        )
    most = spec.batching.max_batch_size

    def profile(rows: int) -> str:
        return ",".join(f"{tensor.name}:{'x'.join(map(str, (rows, *tensor.shape[1:])))}" for tensor in numeric)

    found = {
        "device_id": "0",
        "trt_profile_min_shapes": profile(1),
        "trt_profile_opt_shapes": profile(most),
        "trt_profile_max_shapes": profile(most),
    }
    if spec.onnx.fp16:
        found["trt_fp16_enable"] = "1"
    if cache is not None:
        kept = str(cache)
        found |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": kept}
        found |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": kept}
    return found
