"""Pages to read: rendered ones, and the same kind as a camera sees them. The same files every time.

    python examples/read-page/make_pages.py build/pages       # writes page-01.png … page-26.jpg

What a page shows, its typeface, its size and what the camera does to it follow from its number alone. The typefaces
come with packages: Aileron (CC0) with Pillow, Roboto (Apache 2.0) with font-roboto, Source Serif Pro (OFL 1.1) with
font-source-serif-pro.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]
Random = np.random.Generator

LETTER: Final = (
    "Dear Mrs. Whitcombe,",
    "thank you for your letter of 14 March. The pump that you",
    "ordered has left our works in Bristol this morning and will",
    "reach you before the end of the week.",
    "Two spare valves (No. 2077-B) are in the same crate. Please",
    "keep them dry, and fit them by hand only.",
    "With kind regards,",
    "J. R. Alder, Mill & Water Engineering",
)
INVOICE: Final = (
    ("Item", "Pieces", "Price"),
    ("Sluice gate, oak", "2", "1,480.00"),
    ("Paddle, 60 cm", "24", "31.50"),
    ("Bearing, bronze", "4", "212.75"),
    ("Grease, 5 kg", "1", "38.20"),
    ("Total", "", "4,605.20"),
)
NOTICE: Final = ("CAUTION", "Deep water behind this gate", "Do not climb on the rails", "Emergency: 0117 496 0321")
LIST: Final = (
    "1. Close the head gate",
    "2. Wait until the wheel stands still",
    "3. Lift the rack and clear it of leaves",
    "4. Check the bolts at A, B and C",
    "5. Open the gate by a quarter turn",
    "6. Note the level: 1.35 m at 08:40",
)
STORY: Final = (
    "The mill stood where the river bends, and nobody in",
    "the village could remember a time without it. In dry",
    "summers the wheel turned so slowly that children",
    "counted its paddles aloud; after a week of rain it",
    "shook the windows of the inn across the bridge.",
    "Old Marten listened to it as others listen to a clock.",
    "When it stopped, he woke up.",
)
GAUGE: Final = ("Flow 0.82 m3/s", "Head 3.4 m", "Power 27 kW", "Efficiency 0.71", "Hours 6,212")

FILES: Final = {
    "roboto": ("font_roboto", "Roboto-Regular.ttf"),
    "roboto-bold": ("font_roboto", "Roboto-Bold.ttf"),
    "serif": ("font_source_serif_pro", "SourceSerifPro-Regular.otf"),
}


class Look(NamedTuple):
    """How a page is set."""

    typeface: str
    size: int
    paper: tuple[int, int, int] = (255, 255, 255)
    ink: tuple[int, int, int] = (0, 0, 0)


def typeface(name: str, size: int) -> ImageFont.FreeTypeFont:
    """One of `aileron`, `roboto`, `roboto-bold` and `serif`, at a size in pixels."""
    if name == "aileron":
        found = ImageFont.load_default(size)
        if not isinstance(found, ImageFont.FreeTypeFont):
            msg = "Pillow was built without FreeType"
            raise TypeError(msg)
        return found
    package, file = FILES[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        msg = f"{package.replace('_', '-')} is not installed: pip install -e '.[examples]'"
        raise ModuleNotFoundError(msg)
    return ImageFont.truetype(Path(spec.submodule_search_locations[0]) / "files" / file, size)


# --- what is on a page -----------------------------------------------------------------------------------------------


def _blank(width: int, height: int, look: Look) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (width, height), look.paper)
    return image, ImageDraw.Draw(image)


def lines_page(lines: tuple[str, ...], look: Look) -> Pixels:
    """One line below the other."""
    font = typeface(look.typeface, look.size)
    step = round(look.size * 1.9)
    width = max(round(font.getlength(line)) for line in lines) + 4 * look.size
    image, draw = _blank(width, step * len(lines) + 3 * look.size, look)
    for number, line in enumerate(lines):
        draw.text((2 * look.size, round(1.5 * look.size) + number * step), line, look.ink, font)
    return np.asarray(image)


def columns_page(left: tuple[str, ...], right: tuple[str, ...], look: Look) -> Pixels:
    """Two columns."""
    one, two = lines_page(left, look), lines_page(right, look)
    height = max(len(one), len(two))
    paper = np.array(look.paper, np.uint8)
    halves = [
        np.concatenate([half, np.broadcast_to(paper, (height - len(half), *half.shape[1:]))]) for half in (one, two)
    ]
    return np.concatenate(halves, axis=1)


def table_page(rows: tuple[tuple[str, ...], ...], look: Look) -> Pixels:
    """A ruled table."""
    font = typeface(look.typeface, look.size)
    column, step = 11 * look.size, round(look.size * 2.4)
    image, draw = _blank(column * len(rows[0]) + 2 * look.size, step * len(rows) + 3 * look.size, look)
    for number, row in enumerate(rows):
        top = look.size + number * step
        draw.line((look.size, top, image.width - look.size, top), look.ink, 2)
        for place, cell in enumerate(row):
            draw.text((2 * look.size + place * column, top + look.size // 2), cell, look.ink, font)
    return np.asarray(image)


def standing_page(lines: tuple[str, ...], margin: str, look: Look) -> Pixels:
    """Lines, and one that runs up the margin."""
    page = Image.fromarray(lines_page(lines, look))
    font = typeface(look.typeface, look.size)
    strip, draw = _blank(round(font.getlength(margin)) + look.size, round(look.size * 1.6), look)
    draw.text((look.size // 2, look.size // 5), margin, look.ink, font)
    whole, _ = _blank(page.width + 3 * look.size, max(page.height, strip.width + 2 * look.size), look)
    whole.paste(page, (3 * look.size, 0))
    whole.paste(strip.rotate(90, expand=True), (look.size, look.size))
    return np.asarray(whole)


def empty_page(look: Look) -> Pixels:
    """Nothing."""
    return np.asarray(_blank(800, 1000, look)[0])


# --- what a camera makes of it ---------------------------------------------------------------------------------------


def photograph(page: Pixels, random: Random, *, degrees: float = 0.0) -> Pixels:
    """Seen at an angle, a little out of focus, in uneven light, with a noisy sensor."""
    height, width = page.shape[:2]
    rim = max(height, width) // 12
    size = (width + 2 * rim, height + 2 * rim)
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    moved = corners + rim + random.uniform(-0.6, 0.6, (4, 2)).astype(np.float32) * rim
    middle = (size[0] / 2, size[1] / 2)
    turn = np.vstack([cv2.getRotationMatrix2D(middle, degrees, 1.0), [0, 0, 1]])
    seen: Any = cv2.getPerspectiveTransform(corners, moved.astype(np.float32))
    table = tuple(int(level) for level in random.integers(60, 110, 3))
    photo: Any = cv2.warpPerspective(page, turn @ seen, size, flags=cv2.INTER_AREA, borderValue=table)
    photo = cv2.GaussianBlur(photo, (0, 0), float(random.uniform(0.5, 1.1)))
    across, down = np.meshgrid(np.linspace(-1, 1, size[0]), np.linspace(-1, 1, size[1]))
    slope = random.uniform(-0.2, 0.2, 2)
    light = 0.85 + slope[0] * across + slope[1] * down - 0.1 * (across**2 + down**2)
    noisy: NDArray[np.float64] = photo * light[:, :, None] + random.normal(0, random.uniform(3, 7), photo.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


# --- the pages -------------------------------------------------------------------------------------------------------

_cream: Final = (246, 240, 222)
_blue: Final = (24, 36, 96)
_night: Final = (28, 30, 34)

RENDERED: Final[tuple[Callable[[], Pixels], ...]] = (
    lambda: lines_page(LETTER, Look("serif", 26)),
    lambda: lines_page(LETTER, Look("roboto", 34, _cream, _blue)),
    lambda: lines_page(STORY, Look("aileron", 30)),
    lambda: lines_page(STORY, Look("serif", 48)),
    lambda: lines_page(LIST, Look("roboto", 28)),
    lambda: lines_page(LIST, Look("aileron", 40, _night, (230, 230, 220))),
    lambda: lines_page(NOTICE, Look("roboto-bold", 64, (250, 210, 40))),
    lambda: table_page(INVOICE, Look("roboto", 26)),
    lambda: table_page(INVOICE, Look("serif", 34, _cream)),
    lambda: columns_page(STORY, LIST, Look("serif", 24)),
    lambda: standing_page(GAUGE, "Gauge 7, lower weir", Look("aileron", 32)),
    lambda: lines_page(NOTICE[:1], Look("roboto-bold", 22)),
    lambda: lines_page((" ".join(LETTER[1:4]),), Look("roboto", 22)),
    lambda: empty_page(Look("roboto", 20)),
)
"""Wide and narrow, light on dark, one short line, one line so wide that the page is framed, and nothing at all."""


def _photographs() -> Iterator[Pixels]:
    sheets: tuple[tuple[Callable[[], Pixels], float], ...] = (
        (RENDERED[0], 2.0),
        (RENDERED[1], -3.0),
        (RENDERED[2], 1.0),
        (RENDERED[3], -1.5),
        (RENDERED[4], 4.0),
        (RENDERED[5], 0.0),
        (RENDERED[6], -5.0),
        (RENDERED[7], 1.5),
        (RENDERED[8], -2.0),
        (RENDERED[9], 0.5),
        (RENDERED[4], 180.0),
        (RENDERED[10], 3.0),
    )
    for number, (sheet, degrees) in enumerate(sheets):
        yield photograph(sheet(), np.random.default_rng(700 + number), degrees=degrees)


def pages() -> Iterator[tuple[str, bytes]]:
    """Every page as the name and the content of a file: rendered ones as PNG, photographs as JPEG."""
    for number, draw in enumerate(RENDERED, 1):
        yield f"page-{number:02}.png", _as_file(draw(), "PNG")
    for number, photo in enumerate(_photographs(), len(RENDERED) + 1):
        yield f"page-{number:02}.jpg", _as_file(photo, "JPEG")


def _as_file(pixels: Pixels, kind: str) -> bytes:
    sink = BytesIO()
    Image.fromarray(pixels).save(sink, kind, quality=80)
    return sink.getvalue()


def main() -> None:
    """Write all pages into a folder."""
    parser = argparse.ArgumentParser(description="Write the pages that the example is tested with.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in pages():
        (folder / name).write_bytes(content)
        print(f"{folder / name}: {len(content):,} bytes")


if __name__ == "__main__":
    main()
