"""Hold what the pipeline has read against what rapidocr-onnxruntime itself reads on the same pages.

    python examples/read-page/compare.py build/pages build/pages.jsonl

The second is what `headrace infer --input 'page=@build/pages/*' --per-row --output FILE` wrote: a line a page, in the
order of the files' names.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rapidocr_onnxruntime import RapidOCR


def lines_of(answer: str) -> list[str]:
    """The lines of an answer. Raises KeyError when it is an error."""
    outputs = json.loads(answer)["outputs"]
    return next(list(output["data"]) for output in outputs if output["name"] == "line")


def main() -> None:
    """Compare every page, name those that differ, and say how many are equal."""
    parser = argparse.ArgumentParser(description="Compare what was read with what rapidocr reads.")
    parser.add_argument("pages", type=Path, help="the folder of pages")
    parser.add_argument("answers", type=Path, help="what `headrace infer --per-row --output` wrote")
    options = parser.parse_args()
    pages = sorted(path for path in options.pages.iterdir() if path.is_file())
    answers = options.answers.read_text(encoding="utf-8").splitlines()
    if len(pages) != len(answers):
        sys.exit(f"{len(answers)} answers for {len(pages)} pages")
    library = RapidOCR()
    equal = equal_lines = total_lines = 0
    for page, answer in zip(pages, answers, strict=True):
        expected = [text for _, text, _ in library(page.read_bytes())[0] or ()]
        found = lines_of(answer)
        total_lines += len(expected)
        equal_lines += sum(one == other for one, other in zip(found, expected, strict=False))
        equal += found == expected
        if found != expected:
            print(f"{page.name}: {found} here, {expected} there")
    print(f"{equal} of {len(pages)} pages and {equal_lines} of {total_lines} lines read as rapidocr reads them")
    sys.exit(equal < len(pages))


if __name__ == "__main__":
    main()
