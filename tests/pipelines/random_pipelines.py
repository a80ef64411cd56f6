"""Random pipelines, and models that answer and fail as a hash of their inputs says: the same whenever they are asked.

All tensors are FP64 [-1, 2], so that any source fits anywhere.
"""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np

from contracts.messages import Status
from tests.pipelines.interpreter import PIPELINES, Failed, Tensors

TENSOR = {"datatype": "FP64", "shape": [-1, 2]}
CONSTANT = {"const": [[0.25, 0.5]], "datatype": "FP64"}
MODELS = {"one": ("x",), "two": ("x", "z"), "rows": ("x",), "shaky": ("x",)}
"""Models and their inputs; all return `y`."""


def digest(*parts: object) -> int:
    text = "\0".join(part.hex() if isinstance(part, bytes) else str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def ask(model: str, inputs: Tensors) -> Tensors | Failed:
    """What a model answers. `rows` returns another number of rows, 0 to 3; `shaky` fails half the time."""
    name = model.partition("@")[0]
    content = [inputs[key].tobytes() for key in sorted(inputs)]
    number = digest(name, *content)
    if len({len(array) for array in inputs.values()}) > 1:
        return Failed(Status.INVALID, f"{name} cannot")
    if number % 100 < (50 if name == "shaky" else 8):
        status = (Status.INVALID, Status.INTERNAL, Status.POISON)[number // 100 % 3]
        return Failed(status, f"{name} failed on {number}")
    rows = number // 1000 % 4 if name == "rows" else len(inputs["x"])
    values = [[digest(number, row, column) % 1000 / 1000 for column in range(2)] for row in range(rows)]
    return {"y": np.array(values, dtype=np.float64).reshape(rows, 2)}


class Generator:
    """Writes one random pipeline."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._seed = seed
        self._names = 0

    def pipeline(self) -> dict[str, Any]:
        steps, sources = self._steps(["input.x"], self._random.randint(1, 6), depth=0)
        return {
            "name": "p",
            "version": 1,
            "inputs": [{"name": "x", **TENSOR}],
            "steps": steps,
            "outputs": self._outputs(sources),
        }

    def inputs(self) -> Tensors:
        rows = self._random.randint(1, 3)
        return {"x": np.array([[self._random.random(), self._random.random()] for _ in range(rows)])}

    def _maybe(self, chance: float) -> bool:
        return self._random.random() < chance

    def _steps(self, outer: list[str], count: int, depth: int) -> tuple[dict[str, Any], list[str]]:
        sources, steps = list(outer), dict[str, Any]()
        for _ in range(count):
            self._names += 1
            name = f"s{self._names}"
            deep = 1 if depth < 2 else 0
            kinds = ["model", "reduce", "map", "cascade", "loop", "nested"]
            kind = self._random.choices(kinds, [6, 3, 2 * deep, 1.5, 1.5 * deep, 1.5 * deep])[0]
            step, outputs = getattr(self, f"_{kind}")(sources, depth)
            if self._maybe(0.25):
                step["when"] = [self._condition(sources) for _ in range(self._random.randint(1, 2))]
            steps[name] = step
            sources += [f"{name}.{tensor}" for tensor in outputs]
        return steps, sources

    def _condition(self, sources: list[str]) -> dict[str, Any]:
        op = self._random.choice(["max_below", "max_at_least", "less"])
        return {"tensor": self._source(sources), "op": op, "value": self._random.choice([0.3, 0.7, 0.9])}

    def _late(self, sources: list[str]) -> str:
        """A source, rather one of those that came last."""
        return self._random.choice(sources[-4:] if self._maybe(0.7) else sources)

    def _source(self, sources: list[str]) -> Any:
        if self._maybe(0.15):
            found: list[Any] = [self._late(sources) for _ in range(self._random.randint(1, 3))]
            return [*found, CONSTANT] if self._maybe(0.3) else found
        return self._late(sources)

    def _outputs(self, sources: list[str]) -> dict[str, Any]:
        return {f"o{index}": self._source(sources) for index in range(self._random.randint(1, 3))}

    def _on_error(self, outputs: list[str]) -> dict[str, Any]:
        chance = self._random.random()
        if chance < 0.6:
            return {}
        return {"on_error": "skip" if chance < 0.8 else {"default": dict.fromkeys(outputs, CONSTANT)}}

    def _require(self, most: int) -> dict[str, Any]:
        choice = self._random.choice(["all", "all", "best_effort", "quorum", "first_of"])
        if choice == "quorum":
            return {"require": {"quorum": self._random.randint(1, most)}}
        return {} if choice == "all" else {"require": choice}

    def _model(self, sources: list[str], depth: int) -> tuple[dict[str, Any], list[str]]:
        name = self._random.choices(list(MODELS), [4, 3, 2, 2])[0]
        inputs = {key: self._source(sources) for key in MODELS[name]}
        if name == "two" and self._maybe(0.2):
            inputs["z"] = CONSTANT
        return {"model": f"{name}@1", "inputs": inputs, **self._on_error(["y"])}, ["y"]

    def _reduce(self, sources: list[str], depth: int) -> tuple[dict[str, Any], list[str]]:
        count = self._random.randint(2, 4)
        name = self._random.choice(["mean", "median", "concat", "first_of"])
        members = [self._source(sources) for _ in range(count)]
        step = {"reduce": name, "inputs": {"v": members}, **self._require(count), **self._on_error(["v"])}
        return step, ["v"]

    def _map(self, sources: list[str], depth: int) -> tuple[dict[str, Any], list[str]]:
        over = self._late(sources)
        row = f"row.{over.partition('.')[2]}"
        outer = [source for source in sources if not source.startswith("row.")]
        steps, inner = self._steps([*outer, row], self._random.randint(1, 3), depth + 1)
        outputs = self._outputs([row, *inner[len(outer) + 1 :]])
        step = {
            "map": {"over": over},
            "steps": steps,
            "outputs": outputs,
            **self._require(2),
            **self._on_error(list(outputs)),
        }
        return step, list(outputs)

    def _cascade(self, sources: list[str], depth: int) -> tuple[dict[str, Any], list[str]]:
        names = self._random.choices(["one", "rows", "shaky"], k=self._random.randint(2, 3))
        stages: list[Any] = [f"{name}@1" for name in names]
        if self._maybe(0.3):
            stages[-1] = {"model": stages[-1], "inputs": {"x": self._source(sources)}}
        inputs = {"x": self._source(sources)}
        return {"cascade": stages, "inputs": inputs, "confidence": "y", "threshold": self._random.random()}, ["y"]

    def _loop(self, sources: list[str], depth: int) -> tuple[dict[str, Any], list[str]]:
        outer = [source for source in sources if not source.startswith("turn.")]
        steps, inner = self._steps([*outer, "turn.a", "turn.b"], self._random.randint(1, 2), depth + 1)
        made = inner[len(outer) :]
        op, value = self._random.choice(["max_below", "max_at_least", "less"]), self._random.choice([0.3, 0.7, 0.9])
        until = {"tensor": f"turn.{self._random.choice('ab')}", "op": op, "value": value}
        step = {
            "loop": {
                "times": self._random.randint(1, 3),
                "start": {"a": self._late(outer), "b": self._late(outer)},
                "until": until,
            },
            "steps": steps,
            "outputs": {"a": self._made(made), "b": self._made(made)},
        }
        return step, ["a", "b"]

    def _nested(self, sources: list[str], depth: int) -> tuple[dict[str, Any], list[str]]:
        """Another pipeline, registered as one."""
        steps, inner = self._steps(["input.x", "input.z"], self._random.randint(1, 3), depth + 1)
        self._names += 1
        name = f"p{self._seed}-{self._names}"
        PIPELINES[f"{name}@1"] = {
            "name": name,
            "version": 1,
            "inputs": [{"name": each, **TENSOR} for each in "xz"],
            "steps": steps,
            "outputs": {"a": self._made(inner), "b": self._made(inner)},
        }
        step = {"pipeline": f"{name}@1", "inputs": {"x": self._late(sources), "z": self._late(sources)}}
        return step, ["a", "b"]

    def _made(self, sources: list[str]) -> Any:
        """What a body returns: what was made there or handed in, or the first of several."""
        return self._random.sample(sources, min(2, len(sources))) if self._maybe(0.2) else self._late(sources)
