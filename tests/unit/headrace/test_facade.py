"""The facade hands out the public names, loads nothing early, and refuses to work on somebody else's packages."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import headrace
from contracts import errors

ROOT = Path(headrace.__file__).parent.parent


def python(code: str, *flags: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONSAFEPATH"}}
    # The checkout stands on the path behind the user's folder, where an installed package would be.
    environment["PYTHONPATH"] = os.pathsep.join(str(place) for place in (path, ROOT) if place)
    return subprocess.run(
        [sys.executable, *flags, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", headrace.__all__)
def test_every_public_name_is_the_one_defined_inside(name: str) -> None:
    value = getattr(headrace, name)
    assert value is getattr(importlib.import_module(value.__module__), name)


def test_every_error_class_is_public() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.HeadraceError) and value.__module__ == errors.__name__
    }
    assert defined <= set(headrace.__all__)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="InferenceClinet"):
        _ = headrace.InferenceClinet


def test_dir_lists_the_public_names() -> None:
    assert set(headrace.__all__) <= set(dir(headrace))


def test_importing_the_facade_loads_no_library(tmp_path: Path) -> None:
    early = "{'aiokafka', 'redis', 'numpy', 'producer', 'contracts'}"
    loaded = python(f"import headrace, sys; print(sorted({early} & set(sys.modules)))", cwd=tmp_path)
    assert loaded.stdout == "[]\n", loaded.stderr


@pytest.mark.parametrize("package", ["contracts", "producer", "workers"])
def test_a_package_of_the_same_name_on_the_path_is_named_with_the_way_out(tmp_path: Path, package: str) -> None:
    shadow = tmp_path / package
    shadow.mkdir()
    (shadow / "__init__.py").touch()
    result = python("import headrace", cwd=ROOT.parent, path=tmp_path)
    assert result.returncode == 1
    assert "ImportError" in result.stderr
    assert str(shadow) in result.stderr
    assert str(ROOT / package) in result.stderr
    assert "rename" in result.stderr


def test_a_module_of_the_same_name_is_a_shadow_too(tmp_path: Path) -> None:
    (tmp_path / "workers.py").touch()
    result = python("import headrace", cwd=tmp_path)
    assert str(tmp_path / "workers.py") in result.stderr


def test_a_shadow_in_the_working_directory_is_left_out_by_the_safe_path_flag(tmp_path: Path) -> None:
    (tmp_path / "contracts").mkdir()
    (tmp_path / "contracts" / "__init__.py").touch()
    assert python("import headrace", cwd=tmp_path).returncode == 1
    assert python("import headrace", "-P", cwd=tmp_path).returncode == 0


def test_a_folder_of_the_same_name_without_code_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "contracts").mkdir()  # a namespace portion: a package that is one wins over it
    result = python("import headrace", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
