"""The example folders, copied and prepared once: nothing is written into the repository."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.examples.kit import EXAMPLES, script


@pytest.fixture(scope="session")
def read_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page reader with its models."""
    pytest.importorskip("rapidocr_onnxruntime", reason="the page reader's models: install the extra 'examples'")
    pytest.importorskip("font_roboto", reason="the pages are set in it: install the extra 'examples'")
    folder = tmp_path_factory.mktemp("examples") / "read-page"
    shutil.copytree(EXAMPLES / "read-page", folder)
    script("read-page", "prepare").prepare(folder / "models")
    return folder


@pytest.fixture(scope="session")
def pages() -> dict[str, bytes]:
    """The pages to read, by file name."""
    pytest.importorskip("font_roboto", reason="the pages are set in it: install the extra 'examples'")
    return dict(script("read-page", "make_pages").pages())


@pytest.fixture(scope="session")
def semantic_search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The search with its encoder and its whole index."""
    pytest.importorskip("tokenizers", reason="the search cuts text with it: install the extra 'examples'")
    folder = tmp_path_factory.mktemp("examples") / "semantic-search"
    shutil.copytree(EXAMPLES / "semantic-search", folder)
    prepare = script("semantic-search", "build_index")
    try:
        prepare.prepare(folder / "models")
    except prepare.NotFetched as exc:
        pytest.skip(str(exc))
    return folder
