"""What a pipeline means, said a second time: step after step, straight from the spec, knowing nothing of plans.

Where the meaning leaves something open (which failure comes first, whose votes make a quorum), the interpreter asks a
`Chooser`; `outcomes` tries all of its answers, so that what a fleet came to must be among them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
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
Ask = Callable[[str, Tensors], "Tensors | Failed"]
SKIPPED = Skipped()


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
        yield _Scope(None, spec["steps"], {"input": inputs}, ask, chooser).end(spec["outputs"])
        script = chooser.next_script()


class _Scope:
    """The steps of a pipeline, or of a map's body for one row."""

    def __init__(
        self, outer: _Scope | None, steps: dict[str, Any], given: dict[str, Tensors], ask: Ask, choose: Chooser
    ) -> None:
        self._outer = outer
        self._steps = steps
        self._came: dict[str, Came] = dict(given)
        self._ask = ask
        self._choose = choose

    def _of(self, name: str) -> Came:
        if name not in self._came:
            if name not in self._steps:
                assert self._outer is not None
                return self._outer._of(name)
            self._came[name] = self._evaluate(self._steps[name])
        return self._came[name]

    # --- sources ------------------------------------------------------------------------------------------------------

    def _resolve(self, source: Any) -> Array | Failed | Skipped:
        for alternative in source if isinstance(source, list) else [source]:
            if isinstance(alternative, dict):
                return np.array(alternative["const"], dtype=np.float64)
            name, _, tensor = alternative.partition(".")
            came = self._of(name)
            if isinstance(came, Failed):
                return came
            if not isinstance(came, Skipped) and tensor in came:
                return came[tensor]
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

    # --- steps --------------------------------------------------------------------------------------------------------

    def _evaluate(self, step: dict[str, Any]) -> Came:
        for condition in step.get("when", []):
            found = self._resolve(condition["tensor"])
            if not isinstance(found, np.ndarray):
                return found
            if not _holds(found, condition["op"], condition["value"]):
                return SKIPPED
        if "model" in step:
            return self._model(step)
        return self._reducer(step) if "reduce" in step else self._map(step)

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
        body = _Scope(self, step["steps"], {"row": row}, self._ask, self._choose)
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
