"""The images that no training has seen, as a file to ask with, and how many of them were answered right.

python examples/digits-ensemble/held_out.py build/held-out              # writes images.npy into that folder
python examples/digits-ensemble/held_out.py --score build/held-out/*.jsonl
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from deploy.demo.images import load_digits


def right(file: Path) -> tuple[int, int]:
    """How many of the answers that `headrace infer --per-row --output` wrote are right, and how many there are."""
    digits = load_digits()
    labels = digits.labels[digits.held_out]
    answers = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    if len(answers) != len(labels):
        msg = f"{file} has {len(answers)} answers, but {len(labels)} images were held out"
        raise SystemExit(msg)
    return sum(_label(answer) == label for answer, label in zip(answers, labels, strict=True)), len(labels)


def _label(answer: dict[str, Any]) -> int | None:
    """The digit that an answer is most sure of; None when it is an error."""
    scores = [output["data"] for output in answer.get("outputs", ()) if output["name"] == "scores"]
    return int(np.argmax(scores[0])) if scores else None


def main() -> None:
    """Write the images, or judge answers."""
    parser = argparse.ArgumentParser(description="The images that were held out: write them, or judge answers.")
    parser.add_argument("folder", type=Path, nargs="?", help="where to write images.npy")
    parser.add_argument("--score", type=Path, nargs="+", metavar="FILE", help="what `headrace infer --output` wrote")
    options = parser.parse_args()
    if options.folder is None and not options.score:
        parser.error("give a folder, or --score and files")
    if options.folder is not None:
        digits = load_digits()
        options.folder.mkdir(parents=True, exist_ok=True)
        np.save(options.folder / "images.npy", digits.images[digits.held_out])
    for file in sorted(options.score or (), key=lambda file: file.stem):
        correct, total = right(file)
        print(f"{file.stem}: {correct} of {total} right, {correct / total:.1%}")


if __name__ == "__main__":
    main()
