"""Drawings of pipelines: every step and every arrow is there, and nothing lies on anything else."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import HealthCheck, given, settings
from typer.testing import CliRunner

from contracts.errors import ConfigurationError
from deploy.cli.app import app
from deploy.graph import svg, terminal
from deploy.graph.layout import layout
from deploy.graph.picture import picture
from tests.pipeline_kit import compiled, pipelines

_EXAMPLES = sorted(Path("docs/examples/pipelines").glob("*.yaml"))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(pipelines())
def test_boxes_never_overlap_and_arrows_go_down(spec: dict[str, Any]) -> None:
    drawn = picture(compiled(spec), {})
    arrows = [(arrow.source, arrow.target) for arrow in drawn.arrows]
    placed = layout({box.name: 20.0 for box in drawn.boxes}, arrows, 3.0, 1.0)
    levels = {slot.name: level for level, layer in enumerate(placed.layers) for slot in layer}
    assert all(levels[link.target] == levels[link.source] + 1 for link in placed.links)
    for layer in placed.layers:
        for left, right in pairwise(layer):
            assert left.middle + left.width / 2 <= right.middle - right.width / 2 + 1e-6
    text = terminal.draw(drawn)
    assert all(box.name in text for box in drawn.boxes)
    root = ET.fromstring(svg.draw(drawn))  # noqa: S314 - our own document
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {box.name for box in drawn.boxes} <= texts
    paths = [element for element in root.iter("{http://www.w3.org/2000/svg}path") if element.get("marker-end")]
    assert len(paths) == len(drawn.arrows)


@pytest.mark.parametrize("path", _EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_drawn_as_their_files_say(path: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["pipeline", "graph", str(path)])
    assert run.exit_code == 0
    assert run.stdout.startswith(f"{path.stem}@1\n")
    target = tmp_path / "graph.svg"
    assert CliRunner().invoke(app, ["pipeline", "graph", str(path), "--svg", str(target)]).exit_code == 0
    assert target.read_text(encoding="utf-8").startswith("<svg ")
    found = json.loads(CliRunner().invoke(app, ["pipeline", "graph", str(path), "--json"]).stdout)
    steps = {step["name"] for step in found["pipelines"][0]["steps"]}
    assert {"input", "output"} <= steps
    assert all({edge["source"], edge["target"]} <= steps for edge in found["pipelines"][0]["edges"])


def test_what_is_not_pinned_keeps_the_text_it_is_written_with() -> None:
    run = CliRunner().invoke(app, ["pipeline", "graph", "docs/examples/pipelines/ensemble.yaml"])
    assert "conv:stable" in run.stdout
    assert "linear@1" in run.stdout


def test_a_drawing_that_cannot_be_written_is_refused_in_a_sentence(tmp_path: Path) -> None:
    arguments = ["pipeline", "graph", "docs/examples/pipelines/ensemble.yaml", "--svg", str(tmp_path / "no" / "x.svg")]
    with pytest.raises(ConfigurationError, match=r"x\.svg cannot be written: No such file"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
