"""`headrace demo` as a newcomer runs it; the README shows its output."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, Terminal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def shapes(text: str) -> set[str]:
    """Lines without what differs from run to run: figures, names of leases, bars."""
    lines = (re.sub(r"digits-\d-\w+", "<lease>", line) for line in text.splitlines())
    return {re.sub(r"█+|[\d.,:]+", "#", re.sub(r"\s+", " ", line)).strip() for line in lines}


def test_the_demo_holds_and_looks_as_the_readme_says(tmp_path: Path) -> None:
    done = Terminal(tmp_path).run("headrace demo", seconds=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
    assert done.stdout.count("3,594 of 3,594 requests answered exactly once") == 2
    shown = (ROOT / "README.md").read_text().partition("make demo\n```\n\n```text\n")[2].partition("```")[0]
    assert shown, "README.md shows the demo's output below `make demo`"
    missing = shapes(shown) - shapes(done.stdout) - {"…"}
    # Which worker answered how much, and how large the batches were, differs more than by figures.
    missing = {line for line in missing if not re.match(r"#?-?# #|digits@#: ", line)}
    assert not missing


def test_make_demo_and_headrace_demo_are_the_same() -> None:
    recipe = re.search(r"^demo:.*\n\t(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    assert recipe[1] == "$(BIN)/headrace demo $(ARGS)"
