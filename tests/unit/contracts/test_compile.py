"""What the compiler refuses, with the line it stands on, and what it makes of each kind of step."""

from __future__ import annotations

import textwrap

import pytest

from contracts.compile import Compiled, check_pipeline, describe
from contracts.errors import ConfigurationError, ModelNotFound
from contracts.names import ModelVersion
from contracts.pipelines import PipelineSpec, parse_pipeline
from contracts.plans import Plan, Source
from contracts.specs import TensorSpec
from contracts.typing_pass import Signature
from contracts.yaml_lines import Lines

_HEAD = """\
name: p
version: 1
inputs: [{name: image, datatype: FP32, shape: [-1, 8]}]
"""


def _tensor(name: str, datatype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


_image, _p = _tensor("image", "FP32", -1, 8), _tensor("p", "FP32", -1, 10)
_signatures = {
    "digits": Signature((_image,), (_p, _tensor("label", "INT64", -1))),
    "small": Signature((_tensor("image", "FP32", -1, 4),), (_p,)),
    "crops": Signature((_image,), (_tensor("crop", "FP32", -1, -1, 8),)),
}


def _pin(name: str, version: int | None, label: str | None) -> ModelVersion:
    if name == "unknown":
        raise ModelNotFound("no version of unknown is deployed")
    return ModelVersion(name, version or {"stable": 5}.get(label or "", 3))


def _pipeline(key: ModelVersion) -> PipelineSpec:
    spec, _ = parse_pipeline(
        "name: inner\nversion: 1\ninputs: [{name: image, datatype: FP32, shape: [-1, 8]}]\n"
        "steps: {d: {model: digits, inputs: {image: input.image}}}\noutputs: {p: d.p}",
        "inner.yaml",
    )
    return spec.model_copy(update={"name": key.model})


def _check(body: str) -> tuple[Compiled, Lines]:
    spec, lines = parse_pipeline(_HEAD + textwrap.dedent(body), "p.yaml")
    found = check_pipeline(spec, pin=_pin, signature_of=lambda key: _signatures.get(key.model), pipeline_of=_pipeline)
    return found, lines


def _plan(body: str) -> Plan:
    found, lines = _check(body)
    assert found.plan is not None, describe(found.faults, "p.yaml", lines)
    return found.plan


@pytest.mark.parametrize(
    ("body", "line", "words"),
    [
        ("steps:\n  a: {model: digits, inputs: {image: b.p}}\noutputs: {p: a.p}", 5, "no step 'b'"),
        ("steps:\n  a: {model: digits, inputs: {image: input.x}}\noutputs: {p: a.p}", 5, "no input 'x'"),
        ("steps:\n  a: {model: digits, inputs: {image: input.image}}\noutputs:\n  p: a.q", 7, "no output 'q'"),
        ("steps:\n  a: {model: digits, inputs: {x: input.image}}\noutputs: {p: a.p}", 5, "needs the input 'image'"),
        ("steps:\n  a: {model: small, inputs: {image: input.image}}\noutputs: {p: a.p}", 5, "is FP32 [any, 8]"),
        ("steps:\n  a:\n    model: unknown\n    inputs: {image: input.image}\noutputs: {p: a.p}", 6, "no version of"),
        (
            "steps:\n  a: {model: x, inputs: {i: b.o}}\n  b: {model: x, inputs: {i: a.o}}\noutputs: {p: a.o}",
            5,
            "a → b → a",
        ),
        (
            (
                "steps:\n  a: {model: digits, inputs: {image: input.image}}\n"
                "  v: {reduce: votes, inputs: {p: [a.p]}}\noutputs: {p: v.p}"
            ),
            6,
            "no reducer 'votes'",
        ),
        (
            (
                "steps:\n  a: {model: digits, inputs: {image: input.image}}\n"
                "  v:\n    reduce: mean\n    inputs: {p: [a.p, a.p]}\n    require: {quorum: 3}\noutputs: {p: v.p}"
            ),
            6,
            "quorum of 3",
        ),
        (
            "steps:\n  a: {model: digits, inputs: {image: {const: [1.5, x], datatype: FP32}}}\noutputs: {p: a.p}",
            5,
            "no FP32 tensor",
        ),
        ("steps:\n  a: {pipeline: inner@1, inputs: {x: input.image}}\noutputs: {p: a.p}", 5, "no input 'x'"),
        ("steps:\n  a: {pipeline: p@1, inputs: {image: input.image}}\noutputs: {p: a.p}", 5, "contains itself"),
        ("steps:\n  a: {model: x, inputs: {i: row.o}}\noutputs: {p: a.o}", 5, "only inside of a map"),
        ("steps:\n  map: {model: x, inputs: {i: input.image}}\noutputs: {p: map.o}", 5, "cannot name a step"),
        (
            (
                "steps:\n  a: {map: {over: input.image}, "
                "steps: {a: {model: x, inputs: {i: row.image}}}, outputs: {o: a.o}}"
                "\noutputs: {p: a.o}"
            ),
            5,
            "name of a step around it",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_line(body: str, line: int, words: str) -> None:
    found, lines = _check(body)
    text = describe(found.faults, "p.yaml", lines)
    assert found.plan is None
    assert any(words in each and each.startswith(f"p.yaml:{line}:") for each in text.splitlines()), text


@pytest.mark.parametrize(
    ("body", "line", "words"),
    [
        ("steps:\n  a: {model: digits}\noutputs: {p: a.p}", 5, "Field required"),
        ("steps:\n  a: {modle: digits, inputs: {image: input.image}}\noutputs: {p: a.p}", 5, "exactly one of model"),
        ("steps:\n  a: {model: digits, inputs: {image: image}}\noutputs: {p: a.p}", 5, "write step.tensor"),
        ("steps:\n  a: {model: digits, inputs: {image: 7}}\noutputs: {p: a.p}", 5, "write step.tensor"),
        (
            (
                "steps:\n  a:\n    model: digits\n    inputs: {image: input.image}\n    on_error: ignore\n"
                "outputs: {p: a.p}"
            ),
            8,
            "'fail' or 'skip'",
        ),
        (
            (
                "steps:\n  a:\n    model: d\n    inputs: {i: input.image}\n    when: {tensor: b.p, op: big, value: 1}\n"
                "outputs: {p: a.p}"
            ),
            8,
            "unknown operator 'big'",
        ),
        ("steps:\n  a: {model: 'x@0', inputs: {i: input.image}}\noutputs: {p: a.p}", 5, "no model version"),
        ("steps:\n  a: {model: x, inputs: {i: input.image}}\n  a: {model: x}\noutputs: {}", 6, "defined twice"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(body: str, line: int, words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_pipeline(_HEAD + body, "p.yaml")
    assert any(words in each and each.startswith(f"p.yaml:{line}:") for each in str(caught.value).splitlines()), (
        caught.value
    )


def test_a_chain_that_reads_far_back_needs_no_join() -> None:
    plan = _plan(
        """
        steps:
          a: {model: x, inputs: {i: input.image}}
          b: {model: x, inputs: {i: a.o}}
          c: {model: x, inputs: {i: b.o, j: input.image, k: a.o}}
        outputs: {o: c.o, first: a.o}
        """
    )
    assert plan.joins == ()
    assert plan.by_name["a"].keep == ("input.image",)
    assert plan.by_name["b"].keep == ("a.o", "input.image")
    assert plan.by_name["c"].keep == ("a.o",)


def test_a_value_that_several_branches_know_is_brought_by_one_of_them() -> None:
    plan = _plan(
        """
        steps:
          a: {model: x, inputs: {i: input.image}}
          b: {model: x, inputs: {i: input.image}}
          c: {model: x, inputs: {i: a.o, j: b.o, k: input.image}}
        outputs: {o: c.o}
        """
    )
    assert [join.name for join in plan.joins] == ["c"]
    assert plan.by_name["c"].brings == (("a.o", "input.image"), ("b.o",))
    assert plan.by_name["c"].is_fail_fast


def test_a_cascade_is_a_chain_whose_last_model_asked_answers() -> None:
    plan = _plan(
        """
        steps:
          best: {cascade: [digits@1, digits@2], inputs: {image: input.image}, confidence: p, threshold: 0.9}
        outputs: {p: best.p}
        """
    )
    first, second = plan.by_name["best#1"], plan.by_name["best#2"]
    assert (first.host, second.host, plan.joins) == ("input", "best#1", ())
    assert second.when[0].conditions[0].op == "max_below"
    output = plan.by_name["output"].members[0].bindings[0]
    assert output.alternatives == (Source("best#2", "p"), Source("best#1", "p"))


def test_labels_and_defaults_are_pinned() -> None:
    plan = _plan(
        """
        steps:
          a: {model: 'digits:stable', inputs: {image: input.image}}
          b: {model: digits, inputs: {image: input.image}}
          c: {model: digits@2, inputs: {image: input.image}}
        outputs: {a: a.p, b: b.p, c: c.p}
        """
    )
    assert plan.models == (ModelVersion("digits", 2), ModelVersion("digits", 3), ModelVersion("digits", 5))


def test_a_nested_pipeline_stands_in_the_plan_as_its_steps() -> None:
    plan = _plan("steps: {sub: {pipeline: inner@1, inputs: {image: input.image}}}\noutputs: {p: sub.p}")
    assert plan.by_name["sub/d"].model == ModelVersion("digits", 3)
    assert plan.by_name["output"].members[0].bindings[0].alternatives == (Source("sub/d", "p"),)


def test_rows_along_the_second_dimension_are_typed() -> None:
    plan = _plan(
        """
        steps:
          page: {model: crops, inputs: {image: input.image}}
          lines:
            map: {over: page.crop, axis: 1}
            steps: {read: {model: digits, inputs: {image: row.crop}}}
            outputs: {p: read.p}
        outputs: {p: lines.p}
        """
    )
    assert plan.by_name["lines"].declared[0].shape == (-1, -1, 10)


def test_a_step_that_no_output_uses_is_a_warning_and_does_not_run() -> None:
    found, lines = _check(
        "steps:\n  a: {model: digits, inputs: {image: input.image}}\n"
        "  b: {model: digits, inputs: {image: input.image}}\noutputs: {p: a.p}"
    )
    assert describe(found.faults, "p.yaml", lines) == (
        "p.yaml:6: warning: steps.b: no output uses step b; it will not run"
    )
    assert found.plan is not None
    assert "b" not in found.plan.by_name
