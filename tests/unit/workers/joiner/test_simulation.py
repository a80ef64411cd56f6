"""Random pipelines on a simulated fleet end as a plain interpreter says, whatever happens to the joiners."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from contracts.advance import advance, start
from contracts.messages import Status
from contracts.names import ModelVersion
from contracts.plans import Answer, Ask, Value
from contracts.tensors import Tensor
from tests.pipelines.fleet import compiled, ended, is_allowed, model, possible, tensors
from tests.pipelines.random_pipelines import TENSOR, Generator
from tests.pipelines.world import (
    START_MS,
    Faults,
    FiresWhileReplaying,
    Joiner,
    LimitsItsTracker,
    MarksBeforeItFires,
    PlainOffsets,
    SettlesWithoutMarker,
    World,
    settled,
)

TTL_MS = 60_000
JOBS = 6
seeds = st.integers(0, 2**32)


class Run:
    """Some jobs of random pipelines, from their submission until nothing more can come of them."""

    def __init__(self, seed: int, faults: Faults, kind: type[Joiner] = Joiner) -> None:
        self.world = World(seed, model, faults=faults)
        self.jobs = {f"j{number}": Generator(seed * 100 + number) for number in range(JOBS)}
        self.specs = {job: generator.pipeline() for job, generator in self.jobs.items()}
        self.inputs = {job: generator.inputs() for job, generator in self.jobs.items()}
        self.world.serve(kind)
        for job in self.jobs:
            self.world.after(self.world.random.random() * 3_000, partial(self._submit, job))
        self.world.run_until(START_MS + 12_000)
        faults.crash_every_ms = 0
        self.world.run_until(START_MS + TTL_MS + 180_000)

    def _submit(self, job: str) -> None:
        self.world.submit(job, compiled(self.specs[job]), tensors(self.inputs[job]), ttl_ms=TTL_MS)

    def faults(self) -> list[str]:
        """What the fleet did wrong."""
        found = list(self.world.violations)
        for job, spec in self.specs.items():
            answers = self.world.answers[job]
            if not answers:
                found.append(f"{job} has no answer")
            elif len({ended(answer) for answer in answers}) > 1:
                found.append(f"{job} ended in different ways: {[ended(answer) for answer in answers]}")
            elif is_allowed(answers[0], spec, self.inputs[job]) is False:
                found.append(f"{job} ended as {ended(answers[0])}, not as {possible(spec, self.inputs[job])}: {spec}")
        if not settled(self.world):
            found.append(f"offsets are held: {self.world.committed} of {[len(log) for log in self.world.log]}")
        return found


@settings(max_examples=40, deadline=None)
@given(seeds)
@example(767)  # a map that gets an error which only its body reads, before it knows its rows
def test_random_pipelines_end_as_the_interpreter_says(seed: int) -> None:
    assert Run(seed, Faults()).faults() == []


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_they_do_so_while_joiners_die_and_overlap_and_steps_run_twice(seed: int) -> None:
    assert Run(seed, Faults(crash_every_ms=800, repeat=0.1)).faults() == []


def test_without_faults_every_join_is_fired_once_and_every_job_answered_once() -> None:
    for seed in range(20):
        run = Run(seed, Faults())
        assert all(len(answers) == 1 for answers in run.world.answers.values())
        markers = sum(record.marker is not None for log in run.world.log for record in log)
        assert markers >= run.world.fires


@pytest.mark.parametrize(
    "mistaken", [PlainOffsets, MarksBeforeItFires, SettlesWithoutMarker, FiresWhileReplaying, LimitsItsTracker]
)
def test_a_joiner_with_a_mistake_is_found_out(mistaken: type[Joiner]) -> None:
    assert any(Run(seed, Faults(crash_every_ms=800, repeat=0.1), mistaken).faults() for seed in range(60))


def test_without_markers_jobs_that_were_answered_are_answered_again_by_a_deadline() -> None:
    statuses = set[Status]()
    for seed in range(20):
        run = Run(seed, Faults(crash_every_ms=800), PlainOffsets)
        for answers in run.world.answers.values():
            if any(answer.failure is None for answer in answers):
                statuses |= {answer.failure.status for answer in answers if answer.failure is not None}
    assert Status.DEADLINE_EXCEEDED in statuses


def _never_answers(version: ModelVersion) -> bool:
    return version.model == "two"


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_a_model_that_never_answers_leaves_no_offset_held(seed: int) -> None:
    run = Run(seed, Faults(crash_every_ms=800, hang=_never_answers))
    assert settled(run.world)
    assert run.world.violations == []


class Small(Joiner):
    """Has room for next to nothing."""

    max_bytes = 6_000


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_without_room_a_job_ends_as_it_should_or_is_refused(seed: int) -> None:
    run = Run(seed, Faults(), Small)
    assert settled(run.world)
    for job, spec in run.specs.items():
        first = run.world.answers[job][0]
        assert _is_refused(first) or is_allowed(first, spec, run.inputs[job]) is not False


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_without_room_jobs_still_end_while_joiners_die_and_read_again_what_is_too_much(seed: int) -> None:
    run = Run(seed, Faults(crash_every_ms=800, repeat=0.1), Small)
    assert settled(run.world)
    assert run.world.violations == []
    for job, spec in run.specs.items():
        ends = {ended(answer): answer for answer in run.world.answers[job]}
        taken = [answer for answer in ends.values() if not _is_refused(answer)]
        assert ends, "no answer"
        assert all(is_allowed(answer, spec, run.inputs[job]) is not False for answer in taken)


def _is_refused(answer: Answer) -> bool:
    return answer.failure is not None and answer.failure.status is Status.OVERLOADED


def test_what_a_condition_spares_a_model_is_told() -> None:
    steps = {
        "first": {"model": "one@1", "inputs": {"x": "input.x"}},
        "second": {
            "model": "one@1",
            "inputs": {"x": "input.x"},
            "when": [{"tensor": "first.y", "op": "max_below", "value": 0.5}],
        },
    }
    outputs = {"o": ["second.y", "first.y"]}
    spec = {"name": "p", "version": 1, "inputs": [{"name": "x", **TENSOR}], "steps": steps, "outputs": outputs}
    spared: list[tuple[str, int]] = []
    sure = Value({"y": Tensor.from_numpy("y", np.full((3, 2), 0.9))})
    (ask,) = start(compiled(spec), [Tensor.from_numpy("x", np.zeros((3, 2)))], {})
    assert isinstance(ask, Ask)
    advance(compiled(spec), "first", (), sure, ask.carried, spared=lambda node, rows: spared.append((node.name, rows)))
    assert spared == [("second", 3)]
