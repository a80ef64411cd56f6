"""What a pipeline means, said a second time: step after step, straight from the spec, knowing nothing of plans.

Where the meaning leaves something open (which failure comes first, whose votes make a quorum), the interpreter asks a
`Chooser`; `outcomes` tries all of its answers, so that what a fleet came to must be among them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from contracts.errors import HeadraceError, InvalidRequest
from contracts.messages import Status
from contracts.reducers import reduce

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]


class Failed(NamedTuple):
    """A step's failure; `message` only of models, whose words are passed on."""

    status: Status
    message: str = ""


class Skipped(NamedTuple):
    """No value, and no failure either."""


Came = Tensors | Failed | Skipped
Found = Array | Failed | Skipped
Given = Callable[[str], Found]
Ask = Callable[[str, Tensors], "Tensors | Failed"]
SKIPPED = Skipped()
PIPELINES: dict[str, Any] = {}
"""The specs that steps may name, by `name@version`."""


class Ended(NamedTuple):
    """How a job ended."""

    outputs: tuple[tuple[str, tuple[int, ...], bytes], ...] = ()
    failure: Failed | None = None
    skipped: tuple[str, ...] = ()


class Chooser:
    """Answers what is left open, and remembers what else it could have said."""

    def __init__(self, script: Sequence[int]) -> None:
        self._script = script
        self.taken: list[tuple[int, int]] = []

    def __call__(self, count: int) -> int:
        """A number below `count`."""
        if count == 1:
            return 0
        turn = len(self.taken)
        choice = self._script[turn] if turn < len(self._script) else 0
        self.taken.append((choice, count))
        return choice

    def next_script(self) -> list[int] | None:
        """The answers to give next time; None when all were tried."""
        script = [choice for choice, _ in self.taken]
        for turn in reversed(range(len(script))):
            if script[turn] + 1 < self.taken[turn][1]:
                return [*script[:turn], script[turn] + 1]
        return None


def outcomes(spec: dict[str, Any], inputs: Tensors, ask: Ask) -> Iterator[Ended]:
    """All that may come of a job."""
    script: list[int] | None = []
    while script is not None:
        chooser = Chooser(script)
        yield _Scope(None, spec["steps"], {"input": inputs.__getitem__}, ask, chooser).end(spec["outputs"])
        script = chooser.next_script()


class _Scope:
    """The steps of a pipeline, of a map's body for one row, or of one turn of a loop.

    `given`: what `input`, `row` and `turn` stand for. `forced`: what every step is, whatever it says.
    """

    def __init__(
        self,
        outer: _Scope | None,
        steps: dict[str, Any],
        given: dict[str, Given],
        ask: Ask,
        choose: Chooser,
        forced: Failed | Skipped | None = None,
    ) -> None:
        self._outer = outer
        self._steps = steps
        self._given = given
        self._came: dict[str, Came] = {}
        self._inner: dict[str, Given] = {}
        self._ask = ask
        self._choose = choose
        self._forced = forced

    def _value(self, name: str, tensor: str) -> Found:
        """What a source stands for."""
        if name in self._given:
            return self._given[name](tensor)
        if name not in self._steps:
            assert self._outer is not None
            return self._outer._value(name, tensor)
        step = self._steps[name]
        if "loop" in step or "pipeline" in step:
            if name not in self._inner:
                self._inner[name] = self._enter(step)
            return self._inner[name](tensor)
        if self._forced is not None:
            return self._forced
        if name not in self._came:
            self._came[name] = self._evaluate(step)
        came = self._came[name]
        return came if isinstance(came, (Failed, Skipped)) else came.get(tensor, SKIPPED)

    # --- sources ------------------------------------------------------------------------------------------------------

    def _resolve(self, source: Any) -> Found:
        for alternative in source if isinstance(source, list) else [source]:
            if isinstance(alternative, dict):
                return np.array(alternative["const"], dtype=np.float64)
            name, _, tensor = alternative.partition(".")
            found = self._value(name, tensor)
            if not isinstance(found, Skipped):
                return found
        return SKIPPED

    def _one_of(self, failures: Sequence[Failed]) -> Failed:
        return failures[self._choose(len(failures))]

    def _inputs(self, sources: Mapping[str, Any]) -> Came:
        found = {name: self._resolve(source) for name, source in sources.items()}
        failures = [value for value in found.values() if isinstance(value, Failed)]
        if failures:
            return self._one_of(failures)
        arrays = {name: value for name, value in found.items() if isinstance(value, np.ndarray)}
        if len(arrays) < len(found):
            return SKIPPED
        constant = {name for name, source in sources.items() if isinstance(self._decided(source), dict)}
        rows = next((len(array) for name, array in arrays.items() if name not in constant), None)
        if rows is None:
            return arrays
        return {
            name: np.repeat(array, rows, axis=0) if name in constant and len(array) == 1 else array
            for name, array in arrays.items()
        }

    def _decided(self, source: Any) -> Any:
        """The alternative that counts."""
        alternatives = source if isinstance(source, list) else [source]
        return next((a for a in alternatives if not isinstance(self._resolve(a), Skipped)), None)

    # --- one step -----------------------------------------------------------------------------------------------------

    def _evaluate(self, step: dict[str, Any]) -> Came:
        stopped = self._stopped(step.get("when", []))
        if stopped is not None:
            return stopped
        if "model" in step:
            return self._model(step)
        if "cascade" in step:
            return self._cascade(step)
        return self._reducer(step) if "reduce" in step else self._map(step)

    def _stopped(self, conditions: Sequence[dict[str, Any]]) -> Failed | Skipped | None:
        """What a step is because of its conditions; None when all of them hold."""
        for condition in conditions:
            found = self._resolve(condition["tensor"])
            if not isinstance(found, np.ndarray):
                return found
            if not _holds(found, condition["op"], condition["value"]):
                return SKIPPED
        return None

    def _cascade(self, step: dict[str, Any]) -> Came:
        """Ask on while somebody is in doubt; the last to be asked has the say."""
        last: Came = SKIPPED
        for stage in step["cascade"]:
            own = stage if isinstance(stage, dict) else {"model": stage}
            came = self._model({"inputs": step["inputs"], **own})
            if isinstance(came, Skipped):
                return last
            last = came
            if isinstance(came, Failed) or not _holds(came[step["confidence"]], "max_below", step["threshold"]):
                return last
        return last

    # --- steps with steps ---------------------------------------------------------------------------------------------

    def _enter(self, step: dict[str, Any]) -> Given:
        """The outputs of a nested pipeline or a loop by name, each an outcome of its own."""
        stopped = self._stopped(step.get("when", [])) if self._forced is None else self._forced
        return self._nested(step, stopped) if "pipeline" in step else self._loop(step, stopped)

    def _nested(self, step: dict[str, Any], stopped: Failed | Skipped | None) -> Given:
        spec = PIPELINES[step["pipeline"]]
        given = {"input": lambda name: self._resolve(step["inputs"][name])}
        return _Scope(None, spec["steps"], given, self._ask, self._choose, stopped)._output(spec["outputs"])

    def _loop(self, step: dict[str, Any], stopped: Failed | Skipped | None) -> Given:
        turn, turns = self._output(step["loop"]["start"]), list[Given]()
        for number in range(step["loop"]["times"]):
            if number and stopped is None:
                stopped = self._is_over(step["loop"]["until"], turn)
            body = _Scope(self, step["steps"], {"turn": turn}, self._ask, self._choose, stopped)
            turn = body._output(step["outputs"])
            turns.insert(0, turn)
        return lambda name: next((found for turn in turns if not isinstance(found := turn(name), Skipped)), SKIPPED)

    @staticmethod
    def _is_over(until: dict[str, Any], turn: Given) -> Failed | Skipped | None:
        """What the steps of the next turn are, whatever they say; None when it runs."""
        found = turn(until["tensor"].partition(".")[2])
        if not isinstance(found, np.ndarray):
            return found
        return SKIPPED if _holds(found, until["op"], until["value"]) else None

    def _output(self, sources: Mapping[str, Any]) -> Given:
        return partial(self._named, sources)

    def _named(self, sources: Mapping[str, Any], name: str) -> Found:
        return self._resolve(sources[name])

    # --- steps --------------------------------------------------------------------------------------------------------

    def _model(self, step: dict[str, Any]) -> Came:
        inputs = self._inputs(step["inputs"])
        if isinstance(inputs, (Failed, Skipped)):
            return inputs
        came = self._ask(step["model"], inputs)
        return _own(step, came) if isinstance(came, Failed) else came

    def _reducer(self, step: dict[str, Any]) -> Came:
        count = max(len(sources) for sources in step["inputs"].values())
        members = [self._inputs({name: sources[i] for name, sources in step["inputs"].items()}) for i in range(count)]
        failures = [member for member in members if isinstance(member, Failed)]
        require = step.get("require", "all")
        if failures and require == "all":
            return self._one_of(failures)
        present = [i for i, member in enumerate(members) if not isinstance(member, (Failed, Skipped))]
        chosen = self._quorum(present, require)
        if chosen is None:
            return _own(step, Failed(self._one_of(failures).status)) if failures else SKIPPED
        picked: list[Tensors | None] = [
            member if index in chosen and not isinstance(member, (Failed, Skipped)) else None
            for index, member in enumerate(members)
        ]
        self._repeat_constants(step, picked)
        try:
            return reduce(step["reduce"], picked, step.get("options", {}))
        except InvalidRequest:
            return _own(step, Failed(Status.INVALID))
        except HeadraceError:
            return _own(step, Failed(Status.INTERNAL))

    def _repeat_constants(self, step: dict[str, Any], picked: list[Tensors | None]) -> None:
        """A member that is a constant of one row has as many as the others."""
        constant = {
            (index, name)
            for name, sources in step["inputs"].items()
            for index, source in enumerate(sources)
            if picked[index] is not None and isinstance(self._decided(source), dict)
        }
        rows = sorted(
            {
                len(array)
                for index, member in enumerate(picked)
                for name, array in (member or {}).items()
                if (index, name) not in constant
            }
        )
        if rows:
            count = rows[self._choose(len(rows))]
            for index, name in constant:
                member = picked[index] or {}
                picked[index] = {**member, name: np.repeat(member[name], count, axis=0)}

    def _quorum(self, present: list[int], require: Any) -> list[int] | None:
        needed = require["quorum"] if isinstance(require, dict) else 1
        if len(present) < needed:
            return None
        if not isinstance(require, dict) and require != "first_of":
            return present
        choices = list(itertools.combinations(present, needed))
        return list(choices[self._choose(len(choices))])

    def _map(self, step: dict[str, Any]) -> Came:
        over = step["map"]["over"]
        found = self._resolve(over)
        if not isinstance(found, np.ndarray):
            return found
        if len(found) > step["map"].get("max_rows", 10_000):
            return _own(step, Failed(Status.INVALID))
        if not len(found):
            return {name: np.zeros((0, 2)) for name in step["outputs"]}
        tensor = over.partition(".")[2]
        rows = [self._row(step, {tensor: found[index : index + 1]}) for index in range(len(found))]
        failures = [row for row in rows if isinstance(row, Failed)]
        require = step.get("require", "all")
        if failures and require == "all":
            return _own(step, self._one_of(failures))
        present = [i for i, row in enumerate(rows) if not isinstance(row, (Failed, Skipped))]
        chosen = self._quorum(present, require)
        if chosen is None:
            return _own(step, Failed(self._one_of(failures).status)) if failures else SKIPPED
        kept = [row for index, row in enumerate(rows) if index in chosen and not isinstance(row, (Failed, Skipped))]
        columns = {name: [row[name] for row in kept if name in row] for name in step["outputs"]}
        return {name: np.concatenate(arrays) for name, arrays in columns.items() if arrays}

    def _row(self, step: dict[str, Any], row: Tensors) -> Came:
        body = _Scope(self, step["steps"], {"row": row.__getitem__}, self._ask, self._choose)
        outputs = body._outputs(step["outputs"])
        return outputs if isinstance(outputs, Failed) or outputs else SKIPPED

    # --- the end ------------------------------------------------------------------------------------------------------

    def _outputs(self, sources: Mapping[str, Any]) -> Tensors | Failed:
        found = {name: self._resolve(source) for name, source in sources.items()}
        failures = [value for value in found.values() if isinstance(value, Failed)]
        if failures:
            return self._one_of(failures)
        return {name: value for name, value in found.items() if isinstance(value, np.ndarray)}

    def end(self, sources: Mapping[str, Any]) -> Ended:
        """How the job ends."""
        outputs = self._outputs(sources)
        if isinstance(outputs, Failed):
            return Ended(failure=outputs)
        tensors = tuple((name, array.shape, array.tobytes()) for name, array in outputs.items())
        return Ended(tensors, None, tuple(name for name in sources if name not in outputs))


def _own(step: dict[str, Any], failure: Failed) -> Came:
    """A failure that began at this step, which its `on_error` is about."""
    on_error = step.get("on_error", "fail")
    if on_error == "skip":
        return SKIPPED
    if isinstance(on_error, dict):
        return {name: np.array(value["const"], dtype=np.float64) for name, value in on_error["default"].items()}
    return failure


def _holds(array: Array, op: str, value: float) -> bool:
    if op == "max_below":
        return not _holds(array, "max_at_least", value)
    if op == "max_at_least":
        return all(max(row) >= value for row in array)
    assert op == "less"
    return bool((array < value).all())
