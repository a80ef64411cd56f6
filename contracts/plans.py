"""A plan: a pipeline as it runs, immutable, with every version pinned.

The nodes of a plan form a graph without cycles, in topological order. Each is evaluated exactly once for each branch
path (the indexes of the maps it is inside of), and its outcome, a value, a skip or a failure, flows along every edge
exactly once. What happens where:

- A node with a `host` is evaluated *inline*, at once after its host, by whoever ended the host: it needs no message.
  The node `input` is the head; the host of a map's first body nodes is the map itself.
- A node without one is a *join*: each of its `branches` sends it exactly one part, a gather's body one for each row.
- A model node is asked; what was asked comes back to `advance` with the values that were carried along.

`advance` does all that; this module only says what a plan is, how it is encoded and what identifies it. A plan's digest
is that of its canonical bytes, so equal pipelines with equal versions are one plan, wherever they were compiled.

Values travel in an `Env`: tensors named `step.tensor`. What is not in it was skipped; a failed step is in it as
`step!`; `*missing` names the branches that joins did without.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple

import msgspec

from contracts.errors import InvalidRequest
from contracts.messages import Parameters, Status
from contracts.names import ModelVersion
from contracts.tensors import Tensor

INPUT: Final = "input"
"""The node in whose name the job's inputs are: `input.image`."""
OUTPUT: Final = "output"
"""The node that answers."""
PARAMETERS: Final = "*parameters"
"""The input tensor that holds the caller's parameters, where a step asks for them."""
MISSING: Final = "*missing"
"""The value that names what joins did without, as BYTES."""
DIGEST_BYTES: Final = 16
MAX_DEPTH: Final = 4
"""Maps inside of each other, at most."""

Kind = Literal["input", "model", "reduce", "map", "yield", "gather", "output"]
OnError = Literal["fail", "skip", "default"]
Policy = Literal["all", "best_effort", "quorum", "first_of"]
Branch = tuple[int, ...]
Env = dict[str, Tensor]
"""Values by `step.tensor`; each tensor is named as its key."""


# --- the graph --------------------------------------------------------------------------------------------------------


class Source(msgspec.Struct, frozen=True, tag="s", array_like=True):
    """A tensor of another node."""

    step: str
    tensor: str

    @property
    def key(self) -> str:
        """Its name in an Env."""
        return f"{self.step}.{self.tensor}"


class Constant(msgspec.Struct, frozen=True, tag="c", array_like=True):
    """A tensor that stands in the spec."""

    datatype: str
    shape: tuple[int, ...]
    data: bytes

    def tensor(self, name: str) -> Tensor:
        """It as a tensor of that name."""
        return Tensor(name, self.datatype, self.shape, memoryview(self.data))


class Binding(msgspec.Struct, frozen=True, array_like=True):
    """What one input is made of: the first of the alternatives that was not skipped decides."""

    name: str
    alternatives: tuple[Source | Constant, ...]


class Member(msgspec.Struct, frozen=True, array_like=True):
    """One member of a reducer, with its inputs. A model, a map, a yield and the output have exactly one."""

    bindings: tuple[Binding, ...]
    name: str = ""
    """The step it comes from, as `missing` names it."""


class Condition(msgspec.Struct, frozen=True, omit_defaults=True):
    """A yes or no about one tensor; `contracts.conditions` defines the operators."""

    alternatives: tuple[Source | Constant, ...]
    op: str
    value: float | int | bool | str | None = None


class Guard(msgspec.Struct, frozen=True, omit_defaults=True):
    """Holds when all its conditions do, or, negated, when not all do."""

    conditions: tuple[Condition, ...]
    is_negated: bool = False


class Declared(msgspec.Struct, frozen=True, array_like=True):
    """A tensor as it is known before it is there; -1 stands for any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Node(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One node of a plan."""

    name: str
    kind: Kind
    scope: str = ""
    """The map node whose rows it is evaluated for; "" outside of all maps."""
    host: str | None = None
    """The node behind which it is evaluated inline; None for a join (and for `input`)."""
    branches: tuple[str, ...] = ()
    """Of a join: the nodes that send it one part each. Of a gather: the map (width) and the yield (one per row)."""
    members: tuple[Member, ...] = ()
    when: tuple[Guard, ...] = ()
    """All must hold, or the node is skipped."""
    on_error: OnError = "fail"
    default: tuple[tuple[str, Constant], ...] = ()
    require: Policy = "all"
    quorum: int = 0
    """Values needed when `require` is quorum (k) or first_of (1)."""
    is_fail_fast: bool = False
    """Of a join that requires all: one error decides it, for nothing behind it can make good of the other parts."""
    timeout_ms: int | None = None
    """Of a model: how long an attempt may take. Of a join: how long after its first part it is fired at the latest."""
    retries: int = 0
    model: ModelVersion | None = None
    parameters: Parameters | None = None
    """What a model is given; None passes on what the caller gave."""
    reducer: str = ""
    options: dict[str, Any] = {}
    outputs: tuple[str, ...] = ()
    """The tensors of it that others use; its value must have them."""
    declared: tuple[Declared, ...] = ()
    """Of a gather: what its tensors look like when there are no rows. Of the input: what a job must bring."""
    keep: tuple[str, ...] = ()
    """Of a model: the values that are carried beside its inputs."""
    brings: tuple[tuple[str, ...], ...] = ()
    """Of a join: for each of `branches`, the values that its part brings."""
    max_rows: int = 0
    """Of a map: rows, at most."""
    axis: int = 0
    """Of a map and its gather: along which dimension rows are cut and put together."""

    @property
    def is_join(self) -> bool:
        """Whether it waits for parts."""
        return self.host is None and self.kind != "input"

    @property
    def is_unconditional(self) -> bool:
        """Whether it is a model that is always asked, or the answer."""
        return not self.when and (self.kind == "output" or (self.kind == "model" and self.model is not None))


class Tail(NamedTuple):
    """The end of a plan through which an answer can pass in parts: a model with nothing behind it but what is
    evaluated at once, up to the answer. `outputs`: those of the job that are made of the model's.
    """

    node: str
    outputs: frozenset[str]


class Straight(NamedTuple):
    """The only way on from a node that ended with a value: `behind` is asked, or answers, without a condition.

    `made` are the tensors of the node that others use, `inputs` what the one behind it takes: each by its name and its
    key in an Env.
    """

    behind: Node
    made: tuple[tuple[str, str], ...]
    inputs: tuple[tuple[str, str], ...]


class Plan(msgspec.Struct, frozen=True, dict=True, kw_only=True):
    """A compiled pipeline."""

    pipeline: ModelVersion
    nodes: tuple[Node, ...]
    partitions: int
    """Partitions of the joins topic: fixed, so that a topic that grows splits no job."""
    is_fused: bool = False
    open_jobs: int | None = None
    format: int = 1
    lanes: tuple[ModelVersion, ...] | msgspec.UnsetType = msgspec.UNSET
    """Models whose requests of other priorities have topics of their own; unset, not empty, when there are none, so
    that the digest of such a plan stays what it was before there were lanes.
    """

    @cached_property
    def encoded(self) -> bytes:
        """The canonical bytes."""
        return _encoder.encode(self)

    @cached_property
    def digest(self) -> str:
        """What identifies the plan: 32 hexadecimal digits."""
        return hashlib.blake2b(self.encoded, digest_size=DIGEST_BYTES).hexdigest()

    @cached_property
    def laned(self) -> frozenset[ModelVersion]:
        """The models that have lanes."""
        return frozenset() if self.lanes is msgspec.UNSET else frozenset(self.lanes)

    @cached_property
    def by_name(self) -> dict[str, Node]:
        """Nodes by name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def hosted(self) -> dict[str, tuple[Node, ...]]:
        """The nodes evaluated inline behind each node, in topological order."""
        found: dict[str, list[Node]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            if node.host is not None:
                found[node.host].append(node)
        return {name: tuple(nodes) for name, nodes in found.items()}

    @cached_property
    def feeds(self) -> dict[str, tuple[tuple[Node, tuple[str, ...]], ...]]:
        """The joins that each node sends a part to, and what it brings them."""
        found: dict[str, list[tuple[Node, tuple[str, ...]]]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for branch, brings in zip(node.branches, node.brings, strict=True):
                found[branch].append((node, brings))
        return {name: tuple(joins) for name, joins in found.items()}

    @cached_property
    def straight(self) -> dict[str, Straight]:
        """The nodes that only one way leads on from, if they end with a value: the steps of a chain."""
        found = {}
        for node in self.nodes:
            behind = self.hosted[node.name]
            if len(behind) == 1 and not self.feeds[node.name] and behind[0].is_unconditional:
                firsts = [(binding.name, binding.alternatives[0]) for binding in behind[0].members[0].bindings]
                inputs = tuple((name, first.key) for name, first in firsts if isinstance(first, Source))
                if len(inputs) == len(firsts):
                    made = tuple((name, f"{node.name}.{name}") for name in node.outputs)
                    found[node.name] = Straight(behind[0], made, inputs)
        return found

    @cached_property
    def joins(self) -> tuple[Node, ...]:
        """The nodes that wait for parts."""
        return tuple(node for node in self.nodes if node.is_join)

    @cached_property
    def tail(self) -> Tail | None:
        """Its linear tail; None when the answer is put together at a join, or behind a map."""
        host = self.by_name[OUTPUT].host
        while host is not None and self.by_name[host].kind == "reduce":
            host = self.by_name[host].host
        if host is None or self.by_name[host].kind != "model":
            return None
        behind, todo = {host}, list(self.hosted[host])
        while todo:
            node = todo.pop()
            behind.add(node.name)
            todo += self.hosted[node.name]
            if node.kind not in ("reduce", "output"):
                return None
        if any(self.feeds[name] for name in behind):
            return None
        made = {
            binding.name
            for binding in self.by_name[OUTPUT].members[0].bindings
            if any(isinstance(each, Source) and each.step in behind for each in binding.alternatives)
        }
        return Tail(host, frozenset(made))

    @cached_property
    def models(self) -> tuple[ModelVersion, ...]:
        """The model versions it asks, sorted."""
        return tuple(sorted({node.model for node in self.nodes if node.model is not None}))


_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder = msgspec.msgpack.Decoder(Plan)


def encode(plan: Plan) -> bytes:
    """The canonical bytes of a plan."""
    return plan.encoded


def decode(raw: bytes) -> Plan:
    """The plan that was encoded. Raises InvalidRequest when the bytes are none, or say more than is understood here."""
    try:
        plan = _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        msg = f"a stored plan cannot be read: {exc}"
        raise InvalidRequest(msg) from exc
    if plan.encoded != raw:  # what it leads to would name a plan that nobody has
        msg = f"a stored plan of {plan.pipeline} was written by a release that knows more than this one"
        raise InvalidRequest(msg)
    return plan


# --- what flows -------------------------------------------------------------------------------------------------------


class Value(msgspec.Struct, frozen=True):
    """A step ended with these tensors, by name."""

    tensors: Mapping[str, Tensor]


class Skip(msgspec.Struct, frozen=True):
    """A step was not run: its condition did not hold, or an input of it was skipped."""


class Failure(msgspec.Struct, frozen=True):
    """A step failed, or `step`, which it depends on, did."""

    status: Status
    message: str
    step: str
    retryable: bool = False


Outcome = Value | Skip | Failure


class Ask(msgspec.Struct, frozen=True):
    """A request for a model: when it ends, `advance(plan, node, branch, outcome, carried)` says what comes next."""

    node: str
    branch: Branch
    model: ModelVersion
    inputs: tuple[Tensor, ...]
    carried: Env
    parameters: Parameters
    timeout_ms: int | None = None
    retries: int = 0


class Part(msgspec.Struct, frozen=True):
    """What one branch tells a join.

    `source` is the sending node, or the row's index for a gather's rows; with `join` and `branch` it identifies the
    part. `width` is how many rows a map made. `env` has all values that the join needs and this branch knows, its own
    included; of an error, `failure` says what it was.
    """

    join: str
    branch: Branch
    source: str | int
    kind: Literal["value", "skip", "error", "width"]
    env: Env
    failure: Failure | None = None
    width: int = 0


class Answer(msgspec.Struct, frozen=True):
    """How the job ended: with outputs, or with a failure.

    `skipped` names outputs whose every alternative was skipped; `missing` the branches that joins did without. An
    answer that ends a stream says so by `run`, the name of the execution, and has `index` parts before it.
    """

    outputs: tuple[Tensor, ...] = ()
    failure: Failure | None = None
    skipped: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    index: int = 0
    run: str = ""


Emission = Ask | Part | Answer


def child_id(job: str, node: str, branch: Branch = ()) -> str:
    """The id of a job's request or part: the same however often it is made. For a part, `node` is `source>join`."""
    text = f"{job}\0{node}\0{format_branch(branch)}"
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()


def format_branch(branch: Branch) -> str:
    """A branch path as it travels: `3.7`; "" outside of all maps."""
    return ".".join(map(str, branch)) if branch else ""
