from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu_models import build
from benchmarks.gpu_report import Bucket, folder_name, knee, line, page
from workers.backends.base import ModelContext

ROOT = Path(__file__).resolve().parents[3]
TABLE = [Bucket(1, 2.0, 1.0), Bucket(8, 2.2, 1.7), Bucket(16, 2.5, None), Bucket(32, 4.9, 5.0)]


def test_the_knee_is_the_smallest_batch_near_the_peak() -> None:
    assert knee(TABLE).rows == 16
    assert knee(TABLE[:1]).rows == 1


def test_a_graph_that_is_slower_is_not_the_best() -> None:
    assert TABLE[3].best_ms == 4.9
    assert TABLE[0].graph_gain == 2.0
    assert TABLE[2].graph_gain is None


def test_a_table_becomes_a_device_of_fixed_and_rowwise_cost() -> None:
    fixed, per_row = line([Bucket(rows, 8 + 0.1 * rows, None) for rows in (1, 8, 64)])
    assert fixed == pytest.approx(0.008)
    assert per_row == pytest.approx(0.0001)
    assert line([Bucket(4, 2.0, None)]) == (0.002, 0.0)
    assert min(line([Bucket(1, 1.0, None), Bucket(100, 0.5, None)])) == 0.0


@pytest.mark.parametrize(
    ("device", "folder"), [("NVIDIA H200", "h200"), ("NVIDIA A100-SXM4-80GB", "a100-sxm4-80gb"), ("../..", "gpu")]
)
def test_a_device_has_a_folder_of_its_name(device: str, folder: str) -> None:
    assert folder_name(device) == folder


def test_the_page_has_a_table_for_each_measurement() -> None:
    text = page("NVIDIA H200", {"M1": [{"rows": 8, "ms": 1.2345, "graph": None, "rows_per_s": 6480.7}], "M2": []})
    assert "| rows | ms | graph | rows_per_s |\n|---|---|---|---|\n| 8 | 1.23 | – | 6,481 |" in text
    assert "## M2\n\nNot measured." in text


def test_without_a_gpu_it_says_so_and_ends_with_its_own_status() -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is one")
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 3
    assert "measures a GPU, and there is none to use: torch" in ran.stderr


@pytest.mark.parametrize("name", ["wide", "encoder"])
def test_its_models_run(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the extra 'torch' is not installed")
    from workers.backends.pytorch import TorchBackend

    model, backend = build(name, tmp_path, width=64, layers=1), TorchBackend()
    backend.load(ModelContext(model.spec, model.folder))
    outputs = backend.infer(model.sample(2), 2, {})
    assert outputs["y"].shape == (2, 64)
    assert outputs["y"].dtype == np.float32
    backend.close()
