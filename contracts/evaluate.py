"""What one node makes of the values before it: a value, a skip or a failure; never an exception.

Guards come first, in their order: one that does not hold skips the node whatever its inputs are. Then every input is
the first of its alternatives that was not skipped. A failed input makes a node fail with the first of these failures
(by arrival at a join, else by the input's name), a skipped one makes it skipped; a reducer leaves skipped members
out, and failed ones as far as its `require` allows. `on_error` is about failures that begin at the node itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from contracts import reducers
from contracts.conditions import holds
from contracts.environment import Pending, resolve
from contracts.errors import HeadraceError, InvalidRequest
from contracts.messages import Status
from contracts.plans import Constant, Env, Failure, Guard, Member, Node, Outcome, Skip, Source, Value
from contracts.tensors import Tensor


class Context(NamedTuple):
    """What a node is evaluated with. `ranks`: at a join, which part a step came with; 0 for what was there before."""

    env: Env
    pending: Collection[str] = ()
    ranks: Mapping[str, int] = {}


class Result(NamedTuple):
    """An outcome, and the names of members that were absent and not needed."""

    outcome: Outcome
    missing: tuple[str, ...] = ()


Inputs = dict[str, Tensor]


def own_failure(node: Node, failure: Failure) -> Outcome:
    """What becomes of a failure that began at this node."""
    if node.on_error == "skip":
        return Skip()
    if node.on_error == "default":
        return Value({name: constant.tensor(name) for name, constant in node.default})
    return failure


def attempt(node: Node, act: Callable[[], Outcome]) -> Outcome:
    """The outcome of `act`; what it raises is the node's own failure."""
    try:
        outcome = act()
    except HeadraceError as exc:
        outcome = Failure(Status.INVALID if isinstance(exc, InvalidRequest) else Status.INTERNAL, str(exc), node.name)
    except Exception as exc:  # noqa: BLE001 - reducers and conditions run where no exception may pass
        outcome = Failure(Status.INTERNAL, f"{type(exc).__name__}: {exc}", node.name)
    return own_failure(node, outcome) if isinstance(outcome, Failure) else outcome


def lacking(node: Node, tensors: Mapping[str, Tensor]) -> Failure | None:
    """The failure of a node whose value has not all the tensors that others use."""
    absent = [name for name in node.outputs if name not in tensors]
    if not absent:
        return None
    return Failure(Status.INTERNAL, f"{node.name} returned no tensor {absent[0]!r}", node.name)


def guarded(node: Node, context: Context) -> Outcome | None:
    """None when all guards hold, else what the node is because of them."""
    for guard in node.when:
        found = _check(node, guard, context)
        if found is not None:
            return found
    return None


def _check(node: Node, guard: Guard, context: Context) -> Outcome | None:
    is_met = True
    for condition in guard.conditions:
        found = resolve(condition.alternatives, context.env, context.pending)
        if isinstance(found, Failure):
            return found
        if found is None or isinstance(found, Pending):
            return Skip()
        tensor = found.tensor("") if isinstance(found, Constant) else found
        try:
            is_met = holds(tensor.to_numpy(), condition.op, condition.value)
        except (HeadraceError, ArithmeticError, TypeError, ValueError) as exc:
            return own_failure(node, Failure(Status.INVALID, f"condition of {node.name}: {exc}", node.name))
        if not is_met:
            break
    return None if is_met != guard.is_negated else Skip()


def gathered(member: Member, context: Context) -> Inputs | Failure | Pending | Skip:
    """All inputs of a member; a failure among them wins, then what is not known yet, then a skip."""
    found = [(binding.name, resolve(binding.alternatives, context.env, context.pending)) for binding in member.bindings]
    inputs = {name: _tensor(name, value) for name, value in found if isinstance(value, (Tensor, Constant))}
    if len(inputs) == len(found):
        return inputs
    failure = first_failure((value for _, value in found if isinstance(value, Failure)), context.ranks)
    if failure is not None:
        return failure
    return Pending() if any(isinstance(value, Pending) for _, value in found) else Skip()


def _tensor(name: str, value: Tensor | Constant) -> Tensor:
    if isinstance(value, Constant):
        return value.tensor(name)
    return Tensor(name, value.datatype, value.shape, value.data, value.ref)


def first_failure(failures: Iterable[Failure], ranks: Mapping[str, int]) -> Failure | None:
    """The failure that arrived first; of those that came together, the first in the order of the spec."""
    return min(failures, key=lambda failure: ranks.get(failure.step, 0), default=None)


def repeated(inputs: Inputs, constants: Collection[str], rows: int | None) -> Inputs:
    """The inputs, constants of one row repeated to that many rows."""
    if rows is None or rows == 1:
        return inputs
    return {
        name: _repeat(tensor, rows) if name in constants and tensor.rows == 1 else tensor
        for name, tensor in inputs.items()
    }


def _repeat(tensor: Tensor, rows: int) -> Tensor:
    return Tensor(tensor.name, tensor.datatype, (rows, *tensor.shape[1:]), memoryview(bytes(tensor.data) * rows))


def constants_of(member: Member, context: Context) -> set[str]:
    """The inputs of a member that a constant decides."""
    if not any(isinstance(one, Constant) for binding in member.bindings for one in binding.alternatives):
        return set()
    return {
        binding.name
        for binding in member.bindings
        if isinstance(resolve(binding.alternatives, context.env, context.pending), Constant)
    }


def model_inputs(node: Node, context: Context) -> Inputs | Failure | Skip:
    """What a model is asked; whatever is not known at this point was skipped."""
    member = node.members[0]
    found = gathered(member, context)
    if isinstance(found, (Failure, Skip)):
        return found
    if isinstance(found, Pending):
        return Skip()
    constants = constants_of(member, context)
    if not constants:
        return found
    rows = next((tensor.rows for name, tensor in found.items() if name not in constants), None)
    return repeated(found, constants, rows)


# --- reducers ---------------------------------------------------------------------------------------------------------


class Ballot(NamedTuple):
    """The members of a reducer: what each contributes, and which are to be used."""

    members: list[Inputs | Failure | Pending | Skip]
    chosen: list[int]

    @property
    def failures(self) -> list[Failure]:
        """Of members that failed."""
        return [member for member in self.members if isinstance(member, Failure)]


def ballot(node: Node, context: Context) -> Ballot:
    """What the members contribute. Of a quorum the first k to arrive are chosen, else all that are present."""
    members = [gathered(member, context) for member in node.members]
    present = [index for index, member in enumerate(members) if isinstance(member, dict)]
    if node.quorum:
        present.sort(key=lambda index: (_arrival(node.members[index], context.ranks), index))
        present = sorted(present[: node.quorum])
    return Ballot(members, present)


def _arrival(member: Member, ranks: Mapping[str, int]) -> int:
    steps = (
        alternative.step
        for binding in member.bindings
        for alternative in binding.alternatives
        if isinstance(alternative, Source)
    )
    return max((ranks.get(step, 0) for step in steps), default=0)


def reduced(node: Node, context: Context) -> Result:
    """What a reducer node makes of its members."""
    votes = ballot(node, context)
    failure = first_failure(votes.failures, context.ranks)
    if node.require == "all" and failure is not None:
        return Result(failure)
    if len(votes.chosen) < max(1, node.quorum):
        return Result(Skip() if failure is None else own_failure(node, too_few(node, len(votes.chosen), failure)))
    chosen = set(votes.chosen)
    missing = tuple(
        node.members[index].name
        for index, member in enumerate(votes.members)
        if index not in chosen and not isinstance(member, Skip)
    )
    return Result(attempt(node, lambda: _reduce(node, votes, context)), missing)


def too_few(node: Node, present: int, first: Failure) -> Failure:
    """The failure of a join that got too little."""
    needed = max(1, node.quorum)
    message = f"{node.name} has {present} of the {needed} branches that it needs; {first.step}: {first.message}"
    return Failure(first.status, message, node.name, first.retryable)


def _reduce(node: Node, votes: Ballot, context: Context) -> Outcome:
    chosen, rows = set(votes.chosen), None
    constants = [
        constants_of(member, context) if index in chosen else set() for index, member in enumerate(node.members)
    ]
    for index in votes.chosen:
        member = votes.members[index]
        inputs = member if isinstance(member, dict) else {}
        rows = next((tensor.rows for name, tensor in inputs.items() if name not in constants[index]), rows)
    arrays: list[Mapping[str, npt.NDArray[Any]] | None] = []
    for index, member in enumerate(votes.members):
        if index in chosen and isinstance(member, dict):
            inputs = repeated(member, constants[index], rows)
            arrays.append({name: tensor.to_numpy() for name, tensor in inputs.items()})
        else:
            arrays.append(None)
    outputs = reducers.reduce(node.reducer, arrays, node.options)
    tensors = {name: Tensor.from_numpy(name, np.asarray(array)) for name, array in outputs.items()}
    return lacking(node, tensors) or Value(tensors)


def named_outputs(node: Node, context: Context) -> tuple[dict[str, Tensor], list[str]] | Failure:
    """The tensors of a yield or of the output by name, and the names of those that were skipped."""
    found = [
        (binding.name, resolve(binding.alternatives, context.env, context.pending))
        for binding in node.members[0].bindings
    ]
    failure = first_failure((value for _, value in found if isinstance(value, Failure)), context.ranks)
    if failure is not None:
        return failure
    tensors = {name: _tensor(name, value) for name, value in found if isinstance(value, (Tensor, Constant))}
    return tensors, [name for name, _ in found if name not in tensors]
