from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from contracts.specs import ModelSpec
from workers.backends.device_faults import is_lost, is_out_of_memory
from workers.backends.onnx_providers import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    TENSORRT_PROVIDER,
    Asked,
    Refused,
    choose,
    options,
    verify,
)

CPU_ONLY = [CPU_PROVIDER]
CUDA_TOO = [CUDA_PROVIDER, CPU_PROVIDER]
ALL = [TENSORRT_PROVIDER, CUDA_PROVIDER, CPU_PROVIDER]


def spec(**more: Any) -> ModelSpec:
    return ModelSpec.model_validate(
        {
            "name": "net",
            "version": 1,
            "backend": "onnx",
            "inputs": [
                {"name": "image", "datatype": "UINT8", "shape": [-1, 3, 224, 224]},
                {"name": "bias", "datatype": "FP32", "shape": [-1]},
            ],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, -1]}],
            "batching": {"max_batch_size": 32},
        }
        | more
    )


@pytest.mark.parametrize("available", [CPU_ONLY, CUDA_TOO, ALL])
@pytest.mark.parametrize("asked", ["auto", "cpu"])
def test_a_cpu_lease_is_served_by_the_cpu_whatever_is_installed(asked: Asked, available: list[str]) -> None:
    assert choose(asked, available, on_gpu=False) == ((CPU_PROVIDER,), "")


@pytest.mark.parametrize("asked", ["cuda", "tensorrt"])
def test_a_gpu_provider_without_a_gpu_is_refused(asked: Asked) -> None:
    with pytest.raises(Refused, match=f"provider: {asked}.* needs a GPU, but the lease has none"):
        choose(asked, ALL, on_gpu=False)


@pytest.mark.parametrize("asked", ["auto", "cuda", "tensorrt"])
def test_a_gpu_lease_is_never_served_by_the_cpu_unseen(asked: Asked) -> None:
    with pytest.raises(Refused, match=r"the lease has a GPU, but this ONNX Runtime has no CUDA provider: install"):
        choose(asked, CPU_ONLY, on_gpu=True)


def test_a_gpu_lease_is_served_by_the_cpu_if_the_spec_says_so_and_that_is_worth_a_warning() -> None:
    choice = choose("cpu", ALL, on_gpu=True)
    assert choice.providers == (CPU_PROVIDER,)
    assert "GPU is not used" in choice.warning


@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_tensorrt_has_to_be_asked_for(asked: Asked) -> None:
    assert choose(asked, ALL, on_gpu=True) == ((CUDA_PROVIDER, CPU_PROVIDER), "")
    assert choose("tensorrt", ALL, on_gpu=True) == ((TENSORRT_PROVIDER, CUDA_PROVIDER, CPU_PROVIDER), "")


def test_without_tensorrt_cuda_serves_in_its_place_with_a_warning() -> None:
    choice = choose("tensorrt", CUDA_TOO, on_gpu=True)
    assert choice.providers == (CUDA_PROVIDER, CPU_PROVIDER)
    assert "no TensorRT provider" in choice.warning


def test_a_provider_that_did_not_start_is_noticed() -> None:
    assert verify(ALL, ALL) == ""
    assert "could not start its TensorRT provider" in verify(ALL, CUDA_TOO)
    with pytest.raises(Refused, match="could not start its CUDA provider"):
        verify(CUDA_TOO, CPU_ONLY)
    with pytest.raises(Refused, match="could not start its CUDA provider"):
        verify(ALL, CPU_ONLY)


def test_tensorrt_builds_one_engine_for_all_batch_sizes_and_keeps_it() -> None:
    found = options(TENSORRT_PROVIDER, spec(onnx={"provider": "tensorrt"}), Path("/run/compiled/net"))
    assert found["trt_profile_min_shapes"] == "image:1x3x224x224,bias:1"
    assert found["trt_profile_opt_shapes"] == found["trt_profile_max_shapes"] == "image:32x3x224x224,bias:32"
    assert found["trt_engine_cache_path"] == found["trt_timing_cache_path"] == "/run/compiled/net"
    assert "trt_fp16_enable" not in found


def test_half_precision_only_where_it_is_asked_for() -> None:
    assert options(TENSORRT_PROVIDER, spec(onnx={"provider": "tensorrt", "fp16": True}), None)["trt_fp16_enable"] == "1"


def test_without_a_cache_tensorrt_keeps_nothing() -> None:
    assert not [
        name for name in options(TENSORRT_PROVIDER, spec(onnx={"provider": "tensorrt"}), None) if "cache" in name
    ]


def test_tensorrt_refuses_open_dimensions_by_name() -> None:
    loose = spec(inputs=[{"name": "tokens", "datatype": "INT64", "shape": [-1, -1]}], onnx={"provider": "tensorrt"})
    with pytest.raises(Refused, match="input 'tokens' has open dimensions"):
        options(TENSORRT_PROVIDER, loose, None)


def test_the_cuda_provider_sees_the_leases_only_device() -> None:
    assert options(CUDA_PROVIDER, spec(), None)["device_id"] == "0"
    assert options(CPU_PROVIDER, spec(), None) == {}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"onnx": {"fp16": True}}, "fp16 is TensorRT's"),
        ({"onnx": {"provider": "rocm"}}, "onnx.provider"),
        ({"onnx": {"provider": "cuda"}, "backend": "python"}, "onnx: belongs to the onnx backend"),
    ],
)
def test_options_that_make_no_sense_are_refused_with_the_spec(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        spec(**fields)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA` …",
        "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=node",
        "CUDA error: unspecified launch failure",
    ],
)
def test_faults_that_end_a_process_are_known_by_their_words(text: str) -> None:
    assert is_lost(RuntimeError(text))


@pytest.mark.parametrize(
    "text",
    ["CUDA out of memory. Tried to allocate 2.00 GiB", "CUDA failure 2: out of memory", "misaligned address of mine"],
)
def test_faults_of_one_batch_are_not_taken_for_the_devices(text: str) -> None:
    assert not is_lost(RuntimeError(text))


@pytest.mark.parametrize(
    ("text", "is_short"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA` …", True),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes", True),
        ("CUDA error: an illegal memory access was encountered", False),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`", False),
    ],
)
def test_a_failed_allocation_is_known_by_its_words(text: str, *, is_short: bool) -> None:
    assert is_out_of_memory(RuntimeError(text)) == is_short
