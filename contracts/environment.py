"""The values of a job between two steps, as tensors that travel like any others.

A step that failed is in an Env as `step!` (status, message, the step at fault, retryable), what joins did without as
`*missing`, and a step that was skipped not at all. So failures and skips need no channel of their own: they are carried
wherever the value would have been.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from contracts.messages import Status
from contracts.plans import MISSING, Constant, Env, Failure, Source
from contracts.tensors import BYTES, Tensor, pack_elements, unpack_elements

_MARK = "!"


class Pending:
    """Not known yet: a branch of a join that has not come."""


def tensor_of(name: str, elements: list[str]) -> Tensor:
    """Texts as a BYTES tensor."""
    return Tensor(name, BYTES, (len(elements),), memoryview(pack_elements(elements)))


def texts_of(tensor: Tensor | None) -> list[str]:
    """The texts of a BYTES tensor; none of None."""
    return [] if tensor is None else [element.decode() for element in unpack_elements(tensor.data)]


def renamed(tensor: Tensor, name: str) -> Tensor:
    """The same tensor by another name."""
    return tensor if tensor.name == name else Tensor(name, tensor.datatype, tensor.shape, tensor.data, tensor.ref)


def put_value(env: Env, step: str, tensors: Mapping[str, Tensor], used: Collection[str]) -> None:
    """Add those of a step's tensors that others use."""
    for name in used:
        if name in tensors:
            key = f"{step}.{name}"
            env[key] = renamed(tensors[name], key)


def put_failure(env: Env, step: str, failure: Failure) -> None:
    """Note that a step failed, or could not run because another did."""
    fields = [failure.status.value, failure.message, failure.step, "1" if failure.retryable else ""]
    env[step + _MARK] = tensor_of(step + _MARK, fields)


def failure_of(env: Env, step: str) -> Failure | None:
    """The failure of a step, if it is known to have failed."""
    tensor = env.get(step + _MARK)
    if tensor is None:
        return None
    status, message, origin, retryable = texts_of(tensor)
    return Failure(Status(status), message, origin, bool(retryable))


def failed_steps(env: Env) -> list[str]:
    """The steps that are known to have failed."""
    return [key[: -len(_MARK)] for key in env if key.endswith(_MARK)]


def add_missing(env: Env, names: Iterable[str]) -> None:
    """Note branches that a join did without."""
    found = sorted({*texts_of(env.get(MISSING)), *names})
    if found:
        env[MISSING] = tensor_of(MISSING, found)


def missing_of(env: Env) -> tuple[str, ...]:
    """The branches that joins did without."""
    return tuple(texts_of(env.get(MISSING)))


def kept(env: Env, keys: Iterable[str]) -> Env:
    """The part of an Env that travels on: the values named, the failures of their steps, and what is missing."""
    found = {key: env[key] for key in keys if key in env}
    failed = failed_steps(env)
    if failed:
        wanted = {key.partition(".")[0] for key in keys}
        found.update({step + _MARK: env[step + _MARK] for step in failed if step in wanted})
    if MISSING in env:
        found[MISSING] = env[MISSING]
    return found


def merge(env: Env, other: Env) -> None:
    """Add what another part of the job knows."""
    missing = missing_of(other)
    env.update({key: tensor for key, tensor in other.items() if key != MISSING})
    if missing:
        add_missing(env, missing)


def resolve(
    alternatives: Iterable[Source | Constant], env: Env, pending: Collection[str]
) -> Tensor | Constant | Failure | Pending | None:
    """The first alternative that was not skipped: its tensor, its failure, or that it is not known yet. Else None."""
    for alternative in alternatives:
        if isinstance(alternative, Constant):
            return alternative
        tensor = env.get(alternative.key)
        if tensor is not None:
            return tensor
        failure = failure_of(env, alternative.step)
        if failure is not None:
            return failure
        if alternative.step in pending:
            return Pending()
    return None
