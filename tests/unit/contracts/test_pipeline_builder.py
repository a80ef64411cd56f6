"""Python and YAML make the same specs, and the documentation's examples are what it says they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from contracts.compile import compile_plan
from contracts.errors import ConfigurationError
from contracts.pipeline_builder import Body, Constant, Default, Pipeline, Quorum, When, row, turn
from contracts.pipelines import PipelineSpec, parse_pipeline
from tests.pipeline_kit import pin

_EXAMPLES = Path("docs/examples/pipelines")

_YAML = """
name: all-kinds
version: 2
inputs: [{name: image, datatype: FP32, shape: [-1, 8]}]
limits: {open_jobs: 5}
steps:
  a: {model: x@1, inputs: {i: input.image}, parameters: pass, timeout_ms: 500, retries: 2, on_error: skip}
  b:
    model: 'y:stable'
    inputs: {i: [a.o, input.image], k: {const: [[1, 2]], datatype: FP32}}
    when: {tensor: a.o, op: max_below, value: 0.9}
    on_error: {default: {o: {const: [[0.5]], datatype: FP32}}}
  v: {reduce: mean, inputs: {o: [a.o, b.o]}, options: {nan: ignore}, require: {quorum: 1}}
  c: {cascade: [s@1, l@1], inputs: {i: input.image}, confidence: p, threshold: 0.8}
  m:
    map: {over: {crop: a.crops}, axis: 1, max_rows: 20}
    steps: {r: {model: read, inputs: {i: row.crop}}}
    outputs: {t: r.t}
    require: best_effort
  g:
    loop: {times: 2, start: {t: m.t}, until: {tensor: turn.s, op: equals, value: 1}}
    steps: {e: {model: edit, inputs: {t: turn.t}}}
    outputs: {t: e.t, s: e.s}
  n: {pipeline: other@3, inputs: {t: g.t}}
outputs: {o: [b.o, v.o], t: n.t, p: c.p}
"""


def _built() -> PipelineSpec:
    pipeline = Pipeline("all-kinds", 2, limits={"open_jobs": 5})
    image = pipeline.input("image", "FP32", (-1, 8))
    a = pipeline.model("a", "x@1", {"i": image}, parameters="pass", timeout_ms=500, retries=2, on_error="skip")
    b = pipeline.model(
        "b",
        "y:stable",
        {"i": [a["o"], image], "k": Constant([[1, 2]], "FP32")},
        when=When(a["o"], "max_below", 0.9),
        on_error=Default(o=Constant([[0.5]], "FP32")),
    )
    v = pipeline.reduce("v", "mean", {"o": [a["o"], b["o"]]}, {"nan": "ignore"}, require=Quorum(1))
    c = pipeline.cascade("c", ["s@1", "l@1"], {"i": image}, confidence="p", threshold=0.8)
    lines = Body()
    read = lines.model("r", "read", {"i": row("crop")})
    m = pipeline.map("m", {"crop": a["crops"]}, lines, {"t": read["t"]}, axis=1, max_rows=20, require="best_effort")
    edits = Body()
    edit = edits.model("e", "edit", {"t": turn("t")})
    outputs = {"t": edit["t"], "s": edit["s"]}
    g = pipeline.loop("g", 2, edits, outputs, start={"t": m["t"]}, until=When(turn("s"), "equals", 1))
    n = pipeline.pipeline("n", "other@3", {"t": g["t"]})
    return pipeline.build({"o": [b["o"], v["o"]], "t": n["t"], "p": c["p"]})


def test_python_and_yaml_make_the_same_spec() -> None:
    from_yaml, _ = parse_pipeline(_YAML, "p.yaml")
    assert _built().canonical() == from_yaml.canonical()


def test_a_canonical_spec_reads_as_the_spec_it_is_of() -> None:
    spec = _built()
    assert PipelineSpec.model_validate(spec.canonical()) == spec


def test_what_python_gets_wrong_is_named() -> None:
    pipeline = Pipeline("p", 1)
    image = pipeline.input("image", "FP32", (-1, 8))
    pipeline.model("a", "x@1", {"i": image})
    with pytest.raises(ConfigurationError, match="'a' is defined twice"):
        pipeline.model("a", "x@1", {"i": image})
    pipeline.model("b", "x@1", {"i": image}, retries=99)
    with pytest.raises(ConfigurationError, match=r"pipeline p@1: steps.b.retries: "):
        pipeline.build({"o": image})


@pytest.mark.parametrize("path", sorted(_EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_examples_compile(path: Path) -> None:
    spec, _ = parse_pipeline(path.read_text(encoding="utf-8"), str(path))
    assert spec.name == path.stem
    assert compile_plan(spec, pin=pin, signature_of=lambda _: None).nodes


def test_the_python_example_of_the_documentation_runs() -> None:
    page = Path("docs/pipelines.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)  # noqa: S102 - our own page
    spec = names["spec"]
    assert isinstance(spec, PipelineSpec)
    assert compile_plan(spec, pin=pin, signature_of=lambda _: None).joins
