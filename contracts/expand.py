"""A pipeline's steps laid out flat: nested pipelines inlined, loops unrolled, cascades as chains, maps as three nodes.

Names are looked up like in a program: first the steps beside, then, from the body of a map or a loop, those around it;
a nested pipeline sees only its own inputs. What a name stands for is a list of alternatives among the flat nodes: an
output of a loop is that of the last turn in which it was not skipped, an output of a cascade that of the last model
asked.

    step of            becomes the nodes
    model, reduce      name
    map                name/map, name/<steps of the body>, name/yield, name
    pipeline           name/<steps of the inner pipeline>
    loop               name#1/<steps of the body>, name#2/…
    cascade            name#1, name#2, …
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from contracts import pipelines as spec
from contracts.constants import constant
from contracts.drafts import Alternatives, Draft, Fault, Gate, Input, Test
from contracts.errors import HeadraceError
from contracts.names import ModelVersion
from contracts.pipeline_sources import RESERVED, ConstantSpec, ModelRef, is_step_name, split_source
from contracts.plans import INPUT, MAX_DEPTH, OUTPUT, Source
from contracts.yaml_lines import Path

Pin = Callable[[str, int | None, str | None], ModelVersion]
"""Name, version or None, label or None → the version that is meant; raises HeadraceError when there is none."""
PipelineOf = Callable[[ModelVersion], spec.PipelineSpec]

MAX_NODES: Final = 1000
MAX_NESTING: Final = 16


@dataclass(frozen=True)
class _Scope:
    """Where names are looked up: a pipeline, the body of a map or one turn of a loop."""

    prefix: str
    steps: Mapping[str, Any]
    path: Path
    map_name: str = ""
    gates: tuple[Gate, ...] = ()
    parent: _Scope | None = None
    depth: int = 0
    maps: int = 0
    inputs: Mapping[str, Any] | None = None
    """Of a nested pipeline: what its step binds, to be looked up around it."""
    caller: _Scope | None = None
    row: tuple[str, ...] | None = None
    turn: Mapping[str, Any] | None = None
    turn_scope: _Scope | None = None
    pipeline: ModelVersion | None = None
    """Of a nested pipeline: its version."""
    is_foreign: bool = False
    """The steps stand in another file: faults are shown at the step that named it."""

    def at(self, *keys: str | int) -> Path:
        return self.path if self.is_foreign else (*self.path, *keys)


_T = TypeVar("_T")


class Expansion:
    """The drafts of a pipeline, and what was found wrong with it."""

    def __init__(self, pipeline: spec.PipelineSpec, pin: Pin, pipeline_of: PipelineOf) -> None:
        self.drafts: list[Draft] = []
        self.faults: list[Fault] = []
        self._pipeline = pipeline
        self._pin = pin
        self._pipeline_of = pipeline_of
        self._nested: dict[tuple[str, str], tuple[spec.PipelineSpec, _Scope] | None] = {}
        self._looking: set[tuple[str, str, str]] = set()
        scope = _Scope("", pipeline.steps, ())
        self.drafts.append(Draft(INPUT, "input", (), ""))
        self._steps(scope)
        output = Draft(OUTPUT, "output", ("outputs",), "")
        output.members.append(self._inputs(scope, pipeline.outputs, ("outputs",)))
        self.drafts.append(output)

    # --- steps --------------------------------------------------------------------------------------------------------

    def _steps(self, scope: _Scope) -> None:
        if scope.depth > MAX_NESTING or len(self.drafts) > MAX_NODES:
            self._fault(scope.path, f"more than {MAX_NODES} steps, or nested deeper than {MAX_NESTING}, when laid out")
            return
        for name, step in scope.steps.items():
            path = scope.at("steps", name)
            self._check_name(scope, name, path)
            gates = (*scope.gates, *self._gate(scope, step.when, (*path, "when") if not scope.is_foreign else path))
            self._lay_out(scope, name, step, gates)

    def _lay_out(self, scope: _Scope, name: str, step: Any, gates: tuple[Gate, ...]) -> None:
        match step:
            case spec.ModelStep():
                self._model(scope, name, step, gates)
            case spec.CascadeStep():
                self._cascade(scope, name, step, gates)
            case spec.ReduceStep():
                self._reduce(scope, name, step, gates)
            case spec.MapStep():
                self._map(scope, name, step, gates)
            case spec.PipelineStep():
                self._pipeline_step(scope, name, step, gates)
            case _:
                self._loop(scope, name, step, gates)

    def _check_name(self, scope: _Scope, name: str, path: Path) -> None:
        if not is_step_name(name):
            self._fault(
                path,
                f"{name!r} cannot name a step: use lower-case letters, digits, '_' and '-', and none of "
                f"{', '.join(sorted(RESERVED))}",
            )
        around = scope.parent
        while around is not None:
            if name in around.steps:
                self._fault(path, f"step {name!r} has the name of a step around it; rename one of them")
            around = around.parent

    def _model(self, scope: _Scope, name: str, step: spec.ModelStep, gates: tuple[Gate, ...]) -> None:
        path = scope.at("steps", name)
        draft = Draft(scope.prefix + name, "model", path, scope.map_name, step, gates=gates)
        draft.model = self._pinned(step.model, scope.at("steps", name, "model"))
        draft.parameters = step.parameters
        draft.members.append(self._inputs(scope, step.inputs, scope.at("steps", name, "inputs")))
        self.drafts.append(draft)

    def _cascade(self, scope: _Scope, name: str, step: spec.CascadeStep, gates: tuple[Gate, ...]) -> None:
        for number, stage in enumerate(step.cascade, 1):
            path = scope.at("steps", name, "cascade", number - 1)
            draft = Draft(f"{scope.prefix}{name}#{number}", "model", path, scope.map_name, stage, gates=gates)
            draft.model = self._pinned(stage.model, path)
            own = stage.inputs is not None
            where = path if own else scope.at("steps", name, "inputs")
            draft.members.append(self._inputs(scope, step.inputs if stage.inputs is None else stage.inputs, where))
            if number > 1:
                before = Source(f"{scope.prefix}{name}#{number - 1}", step.confidence)
                test = Test((before,), "max_below", step.threshold, scope.at("steps", name, "confidence"))
                draft.gates = (*gates, Gate((test,)))
            draft.parameters = step.parameters
            self.drafts.append(draft)

    def _reduce(self, scope: _Scope, name: str, step: spec.ReduceStep, gates: tuple[Gate, ...]) -> None:
        path = scope.at("steps", name)
        draft = Draft(scope.prefix + name, "reduce", path, scope.map_name, step, gates=gates)
        lists = {key: value for key, value in step.inputs.items() if isinstance(value, tuple)}
        sizes = {len(value) for value in lists.values()}
        if len(sizes) > 1:
            self._fault(scope.at("steps", name, "inputs"), "inputs of a reducer must list equally many members")
        for index in range(min(sizes, default=1)):
            inputs = {key: lists[key][index] if key in lists else value for key, value in step.inputs.items()}
            where = scope.at("steps", name, "inputs")
            entries = self._inputs(scope, inputs, where)
            draft.members.append(
                [e._replace(path=(*e.path, index)) if e.name in lists and not scope.is_foreign else e for e in entries]
            )
        self.drafts.append(draft)

    def _map(self, scope: _Scope, name: str, step: spec.MapStep, gates: tuple[Gate, ...]) -> None:
        path = scope.at("steps", name)
        if scope.maps >= MAX_DEPTH:
            self._fault(path, f"maps may stand inside of each other up to {MAX_DEPTH} deep")
            return
        full = scope.prefix + name
        over = step.map.over
        named = {split_source(over)[1]: over} if isinstance(over, str) else over
        inner = _Scope(
            f"{full}/",
            step.steps,
            path,
            f"{full}/map",
            (),
            scope,
            scope.depth + 1,
            scope.maps + 1,
            row=tuple(named),
            is_foreign=scope.is_foreign,
        )
        head = Draft(f"{full}/map", "map", path, scope.map_name, step, gates=gates)
        head.members.append(self._inputs(scope, named, scope.at("steps", name, "map", "over")))
        self.drafts.append(head)
        self._steps(inner)
        end = Draft(f"{full}/yield", "yield", inner.at("outputs"), f"{full}/map", step)
        end.members.append(self._inputs(inner, step.outputs, inner.at("outputs")))
        self.drafts += [end, Draft(full, "gather", path, scope.map_name, step)]

    def _pipeline_step(self, scope: _Scope, name: str, step: spec.PipelineStep, gates: tuple[Gate, ...]) -> None:
        found = self._inner(scope, name, step)
        if found is None:
            return
        inner, inside = found
        wanted = {tensor.name for tensor in inner.inputs}
        path = scope.at("steps", name, "inputs")
        unknown, absent = sorted(set(step.inputs) - wanted), sorted(wanted - set(step.inputs))
        if unknown or absent:
            what = f"has no input {unknown[0]!r}" if unknown else f"needs the input {absent[0]!r}"
            self._fault(path, f"pipeline {inner.key} {what}; it takes {', '.join(sorted(wanted))}")
        self._steps(replace(inside, gates=gates))

    def _loop(self, scope: _Scope, name: str, step: spec.LoopStep, gates: tuple[Gate, ...]) -> None:
        for number in range(1, step.loop.times + 1):
            turn = self._turn(scope, name, step, number)
            own = gates
            for earlier in range(2, number + 1):
                until = scope.at("steps", name, "loop", "until")
                tests = self._tests(self._turn(scope, name, step, earlier), step.loop.until, until)
                own = (*own, Gate(tests, is_negated=True)) if tests else own
            self._steps(replace(turn, gates=own))

    # --- scopes -------------------------------------------------------------------------------------------------------

    def _turn(self, scope: _Scope, name: str, step: spec.LoopStep, number: int) -> _Scope:
        """The body of one turn of a loop; its `turn` is what the turn before returned."""
        before = self._turn(scope, name, step, number - 1) if number > 1 else None
        return _Scope(
            f"{scope.prefix}{name}#{number}/",
            step.steps,
            scope.at("steps", name),
            scope.map_name,
            (),
            scope,
            scope.depth + 1,
            scope.maps,
            is_foreign=scope.is_foreign,
            turn=step.loop.start if before is None else step.outputs,
            turn_scope=scope if before is None else before,
        )

    def _inner(self, scope: _Scope, name: str, step: spec.PipelineStep) -> tuple[spec.PipelineSpec, _Scope] | None:
        """The pipeline that a step names, and the scope of its steps."""
        key = (scope.prefix, name)
        if key not in self._nested:
            self._nested[key] = None
            path = scope.at("steps", name, "pipeline")
            version = self._pinned(step.pipeline, path)
            if version is not None and version in self._callers(scope):
                self._fault(path, f"pipeline {version} contains itself")
                return None
            inner = None if version is None else self._known(lambda: self._pipeline_of(version), path)
            if inner is not None:
                inside = _Scope(
                    f"{scope.prefix}{name}/",
                    inner.steps,
                    scope.at("steps", name),
                    scope.map_name,
                    depth=scope.depth + 1,
                    maps=scope.maps,
                    inputs=step.inputs,
                    caller=scope,
                    pipeline=version,
                    is_foreign=True,
                )
                self._nested[key] = (inner, inside)
        return self._nested[key]

    def _callers(self, scope: _Scope) -> set[ModelVersion]:
        """The pipelines that a scope is inside of."""
        found = {self._pipeline.key}
        around: _Scope | None = scope
        while around is not None:
            outermost = _around(around)[-1]
            if outermost.pipeline is not None:
                found.add(outermost.pipeline)
            around = outermost.caller
        return found

    # --- names --------------------------------------------------------------------------------------------------------

    def _inputs(self, scope: _Scope, inputs: Mapping[str, Any], path: Path) -> list[Input]:
        return [
            Input(name, self._look_up(scope, value, here := path if scope.is_foreign else (*path, name)), here)
            for name, value in inputs.items()
        ]

    def _gate(self, scope: _Scope, conditions: Sequence[spec.ConditionSpec], path: Path) -> tuple[Gate, ...]:
        tests = self._tests(scope, conditions, path)
        return (Gate(tests),) if tests else ()

    def _tests(self, scope: _Scope, conditions: Sequence[spec.ConditionSpec], path: Path) -> tuple[Test, ...]:
        return tuple(Test(self._look_up(scope, each.tensor, path), each.op, each.value, path) for each in conditions)

    def _look_up(self, scope: _Scope, value: Any, path: Path) -> Alternatives:
        if isinstance(value, tuple):
            return tuple(each for part in value for each in self._look_up(scope, part, path))
        if isinstance(value, ConstantSpec):
            try:
                return (constant(value.const, value.datatype),)
            except ValueError as exc:
                self._fault(path, str(exc))
                return ()
        step, tensor = split_source(value)
        mark = (scope.prefix, step, tensor)
        if mark in self._looking:
            self._fault(path, f"{value!r} depends on itself")
            return ()
        self._looking.add(mark)
        try:
            return self._name(scope, step, tensor, path)
        finally:
            self._looking.discard(mark)

    def _name(self, scope: _Scope, step: str, tensor: str, path: Path) -> Alternatives:
        if step == "input":
            return self._input(scope, tensor, path)
        if step in ("row", "turn"):
            return self._body(scope, step, tensor, path)
        around: _Scope | None = scope
        while around is not None:
            if step in around.steps:
                return self._output_of(around, step, around.steps[step], tensor, path)
            around = around.parent
        known = sorted({name for each in _around(scope) for name in each.steps})
        self._fault(path, f"there is no step {step!r} here; known: input, {', '.join(known)}")
        return ()

    def _input(self, scope: _Scope, tensor: str, path: Path) -> Alternatives:
        outermost = _around(scope)[-1]
        if outermost.inputs is not None and outermost.caller is not None:
            if tensor in outermost.inputs:
                return self._look_up(outermost.caller, outermost.inputs[tensor], path)
            return ()  # said where the pipeline is named
        names = [declared.name for declared in self._pipeline.inputs]
        if tensor not in names:
            self._fault(path, f"the pipeline has no input {tensor!r}; it has {', '.join(names)}")
            return ()
        return (Source(INPUT, tensor),)

    def _body(self, scope: _Scope, word: str, tensor: str, path: Path) -> Alternatives:
        for each in _around(scope):
            if word == "row" and each.row is not None:
                if tensor in each.row:
                    return (Source(each.map_name, tensor),)
                self._fault(path, f"a row has no tensor {tensor!r}; it has {', '.join(each.row)}")
                return ()
            if word == "turn" and each.turn is not None and each.turn_scope is not None:
                if tensor in each.turn:
                    return self._look_up(each.turn_scope, each.turn[tensor], path)
                self._fault(path, f"a turn has no tensor {tensor!r}; it needs to be in `start` and in `outputs`")
                return ()
        self._fault(path, f"'{word}' has a meaning only inside of a {'map' if word == 'row' else 'loop'}")
        return ()

    def _output_of(self, scope: _Scope, name: str, step: Any, tensor: str, path: Path) -> Alternatives:
        full = scope.prefix + name
        if isinstance(step, spec.CascadeStep):
            return tuple(Source(f"{full}#{number}", tensor) for number in range(len(step.cascade), 0, -1))
        if isinstance(step, (spec.ModelStep, spec.ReduceStep)):
            return (Source(full, tensor),)
        found = self._inner(scope, name, step) if isinstance(step, spec.PipelineStep) else None
        if isinstance(step, spec.PipelineStep) and found is None:
            return ()  # said where the pipeline is named
        outputs = found[0].outputs if found is not None else step.outputs
        if tensor not in outputs:
            self._fault(path, f"step {name!r} has no output {tensor!r}; it has {', '.join(outputs)}")
            return ()
        if isinstance(step, spec.MapStep):
            return (Source(full, tensor),)
        scopes = (
            [found[1]]
            if found is not None
            else [self._turn(scope, name, step, number) for number in range(step.loop.times, 0, -1)]
        )
        return tuple(each for inner in scopes for each in self._look_up(inner, outputs[tensor], path))

    # --- faults -------------------------------------------------------------------------------------------------------

    def _pinned(self, text: str, path: Path) -> ModelVersion | None:
        return self._known(lambda: self._pin(*ModelRef.parse(text)), path)

    def _known(self, find: Callable[[], _T], path: Path) -> _T | None:
        try:
            return find()
        except HeadraceError as exc:
            self._fault(path, str(exc))
            return None

    def _fault(self, path: Path, message: str) -> None:
        fault = Fault(path, message)
        if fault not in self.faults:
            self.faults.append(fault)


def _around(scope: _Scope) -> list[_Scope]:
    found = [scope]
    while found[-1].parent is not None:
        found.append(found[-1].parent)
    return found
