"""A random pipeline as the fleet runs it, and whether its end is one that the interpreter allows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from contracts.compile import compile_plan
from contracts.names import ModelVersion
from contracts.pipelines import PipelineSpec
from contracts.plans import Answer, Failure, Outcome, Plan, Value
from contracts.specs import TensorSpec
from contracts.tensors import Tensor
from contracts.typing_pass import Signature
from tests.pipelines import random_pipelines
from tests.pipelines.interpreter import PIPELINES, Ended, Failed, Tensors, outcomes
from tests.pipelines.world import PLANS

MAX_PATHS = 3_000
"""Ways to settle what the meaning leaves open that are tried before giving up on a pipeline."""


def model(version: ModelVersion, inputs: Sequence[Tensor]) -> Outcome:
    """What a worker computes."""
    came = random_pipelines.ask(str(version), {tensor.name: tensor.to_numpy() for tensor in inputs})
    if isinstance(came, Failed):
        return Failure(came.status, came.message, version.model)
    return Value({name: Tensor.from_numpy(name, array) for name, array in came.items()})


def signature_of(version: ModelVersion) -> Signature:
    def spec(name: str) -> TensorSpec:
        return TensorSpec(name=name, datatype="FP64", shape=(-1, 2))

    return Signature(tuple(map(spec, random_pipelines.MODELS[version.model])), (spec("y"),))


def compiled(spec: dict[str, Any], partitions: int = 2) -> Plan:
    plan = compile_plan(
        PipelineSpec.model_validate(spec),
        pin=lambda name, version, _: ModelVersion(name, version or 1),
        signature_of=signature_of,
        pipeline_of=lambda version: PipelineSpec.model_validate(PIPELINES[str(version)]),
        partitions=partitions,
    )
    PLANS[plan.digest] = plan
    return plan


def tensors(inputs: Tensors) -> list[Tensor]:
    return [Tensor.from_numpy(name, array) for name, array in inputs.items()]


def ended(answer: Answer) -> Ended:
    """An answer as the interpreter puts it."""
    if answer.failure is not None:
        return Ended(failure=_failed(Failed(answer.failure.status, answer.failure.message)))
    outputs = tuple((tensor.name, tensor.shape, bytes(tensor.data)) for tensor in answer.outputs)
    return Ended(outputs, None, answer.skipped)


def _failed(failure: Failed) -> Failed:
    """Only models' messages are part of the meaning."""
    return failure if " failed on " in failure.message and "branches" not in failure.message else Failed(failure.status)


def is_allowed(answer: Answer, spec: dict[str, Any], inputs: Tensors) -> bool | None:
    """Whether the meaning of the pipeline includes this end; None when there are too many ways to try them all."""
    end = ended(answer)
    for number, allowed in enumerate(outcomes(spec, inputs, random_pipelines.ask)):
        plain = allowed if allowed.failure is None else Ended(failure=_failed(allowed.failure))
        if plain == end:
            return True
        if number > MAX_PATHS:
            return None
    return False


def possible(spec: dict[str, Any], inputs: Tensors) -> list[Ended]:
    """For the message of a test that fails."""
    return list(itertools.islice(dict.fromkeys(outcomes(spec, inputs, random_pipelines.ask)), 20))
