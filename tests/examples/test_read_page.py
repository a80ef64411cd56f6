from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts.errors import InvalidRequest, InvalidRows
from contracts.names import ModelVersion
from tests.examples.kit import LocalFleet, same, script, takes_minutes, texts

cv2 = pytest.importorskip("cv2", reason="the page reader's tools: install the extra 'examples'", exc_type=ImportError)
rapidocr = pytest.importorskip("rapidocr_onnxruntime", reason="the page reader's models: install the extra 'examples'")

QUICK = ("page-06.png", "page-11.png", "page-12.png", "page-14.png", "page-26.jpg")
"""Light on dark, a line up the margin, one line, an empty page, and a photograph."""


@pytest.fixture(scope="module")
def fleet(read_page: Path) -> Iterator[LocalFleet]:
    found = LocalFleet(read_page / "fleet.yaml")
    yield found
    found.close()


@pytest.fixture(scope="module")
def library() -> Any:
    """The library itself: the independent witness."""
    return rapidocr.RapidOCR()


def lines_of(library: Any, page: bytes) -> list[tuple[str, list[list[float]], float]]:
    found, _ = library(page)
    return [(text, box, score) for box, text, score in found or ()]


def check(fleet: LocalFleet, library: Any, page: bytes, name: str) -> int:
    """Hold a page against the library; how many lines it has."""
    expected = lines_of(library, page)
    answer = fleet.run("read-page@1", {"page": texts(page)})
    assert [line.decode() for line in answer["line"][0]] == [text for text, _, _ in expected], name
    assert answer["text"][0].decode() == "\n".join(text for text, _, _ in expected), name
    np.testing.assert_allclose(answer["box"][0], np.reshape([box for _, box, _ in expected], (-1, 4, 2)), atol=1e-3)
    np.testing.assert_allclose(answer["score"][0], [score for _, _, score in expected], atol=1e-3)
    return len(expected)


@pytest.mark.parametrize("name", QUICK)
def test_a_page_reads_as_the_library_reads_it(
    name: str, fleet: LocalFleet, library: Any, pages: dict[str, bytes]
) -> None:
    count = check(fleet, library, pages[name], name)
    assert count == {"page-06.png": 6, "page-11.png": 6, "page-12.png": 1, "page-14.png": 0, "page-26.jpg": 6}[name]


@takes_minutes
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_page_reads_as_the_library_reads_it(fleet: LocalFleet, library: Any, pages: dict[str, bytes]) -> None:
    lines = sum(check(fleet, library, page, name) for name, page in pages.items())
    print(f"{len(pages)} of {len(pages)} pages and {lines} of {lines} lines read as rapidocr reads them")
    assert len(pages) >= 20
    assert sum(name.endswith("jpg") for name in pages) >= 10


def test_pages_are_the_same_every_time_and_small_enough_to_travel_in_a_request(pages: dict[str, bytes]) -> None:
    again = script("read-page", "make_pages").pages()
    assert {name: content for name, content in again if name in QUICK} == {name: pages[name] for name in QUICK}
    assert max(map(len, pages.values())) < 256 * 1024


def test_fused_the_same_comes_out(fleet: LocalFleet, pages: dict[str, bytes]) -> None:
    page = {"page": texts(pages["page-12.png"])}
    assert same(fleet.run("read-page@1", page), fleet.run("read-page@2", page))
    assert fleet.plan("read-page@2").is_fused


def test_a_line_that_is_upside_down_is_turned(fleet: LocalFleet, library: Any, pages: dict[str, bytes]) -> None:
    upright: Any = cv2.imdecode(np.frombuffer(pages["page-12.png"], np.uint8), cv2.IMREAD_COLOR)
    turned = cv2.imencode(".png", cv2.rotate(upright, cv2.ROTATE_180))[1].tobytes()

    answer = fleet.run("read-page@1", {"page": texts(turned)})

    assert answer["text"][0] == b"CAUTION"
    assert [text for text, _, _ in lines_of(library, turned)] == ["CAUTION"]


def test_the_graphs_give_what_the_library_s_own_give(fleet: LocalFleet, library: Any) -> None:
    picture = np.random.default_rng(3).integers(0, 256, (1, 64, 96, 3), np.uint8)
    own = library.text_det.infer(library.text_det.get_preprocess(96).permute(_normalized(picture[0]))[None])[0]
    found = fleet.ask(ModelVersion("page-detect", 1), {"picture": picture}, {})["text"]
    np.testing.assert_allclose(found, own[:, 0], atol=1e-6)


def _normalized(pixels: Any) -> Any:
    return ((pixels.astype(np.float32) * np.float32(1 / 255)).astype(np.float64) * 2 - 1).astype(np.float32)


def test_what_is_no_image_is_refused(fleet: LocalFleet, pages: dict[str, bytes]) -> None:
    with pytest.raises(InvalidRequest, match="the page is no picture: its 8 bytes"):
        fleet.ask(ModelVersion("page-scale", 1), {"page": texts(b"no image")}, {})
    with pytest.raises(InvalidRequest, match=r"cannot be decoded: .*truncated"):
        fleet.ask(ModelVersion("page-scale", 1), {"page": texts(pages["page-26.jpg"][:2000])}, {})


def test_of_many_crops_those_that_are_no_images_are_named(fleet: LocalFleet) -> None:
    crop: bytes = cv2.imencode(".png", np.zeros((8, 40, 3), np.uint8))[1].tobytes()
    view = ModelVersion("line-view", 1)
    with pytest.raises(InvalidRows) as told:
        fleet.ask(view, {"crop": texts(crop, b"", crop, b"no image")}, {})
    assert told.value.rows == dict.fromkeys((1, 3), "a crop is no image")
    assert fleet.ask(view, {"crop": texts(crop, crop)}, {})["strip"].shape == (2, 48, 192, 3)


def test_without_the_package_preparing_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prepare = script("read-page", "prepare")
    monkeypatch.setattr(prepare, "PACKAGE", "a_package_that_is_not_there")
    with pytest.raises(prepare.NotInstalled, match="pip install"):
        prepare.prepare(tmp_path)
