"""The page of settings is what the settings say."""

from __future__ import annotations

from pathlib import Path

from deploy.configuration import render

PAGE = Path(__file__).resolve().parents[3] / "docs" / "configuration.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "run `python -m deploy.configuration > docs/configuration.md`"


def test_every_setting_is_explained() -> None:
    rows = [line for line in render().splitlines() if line.startswith("| `HEADRACE_")]
    assert len(rows) > 30
    assert [row for row in rows if row.endswith("|  |")] == []
