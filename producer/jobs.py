"""All that is known about submitting to one pipeline version, worked out once: the compiled plan and where it begins.

A job is encoded like a request for a model. When the pipeline begins with a single model the request goes straight to
that model's topic, as everybody's requests do; else one record goes to the pipeline's own topic, where a joiner takes
the job apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from contracts import topics
from contracts.advance import start
from contracts.codec import decode_headers, decode_request, encode_headers
from contracts.emissions import Job, outbound
from contracts.errors import Overloaded
from contracts.messages import Hop
from contracts.partitioner import Partitioner
from contracts.pipelines import PipelineSpec
from contracts.plans import INPUT, Ask, Plan
from contracts.references import missing
from producer.pending import Outgoing
from producer.plan import ModelPlan

Pairs = Sequence[tuple[str, bytes]]


class PipelinePlan(ModelPlan):
    """How jobs of one pipeline version are made."""

    __slots__ = ("_first", "_open", "_prefix", "plan")

    def __init__(
        self,
        plan: Plan,
        partitioner: Partitioner,
        first: Mapping[str, Partitioner],
        *,
        inputs: PipelineSpec,
        prefix: str,
    ) -> None:
        """`first`: partitioners of the topics, and lanes, of the plan's models."""
        key = plan.pipeline
        super().__init__(key, topics.requests(prefix, key.model, key.version), partitioner, inputs.inputs)
        self.plan = plan
        self._first = first
        self._prefix = prefix
        self._open = 0

    @property
    def topics(self) -> Mapping[str, Partitioner]:
        """Where jobs may begin."""
        return {self.topic: self.partitioner, **self._first}

    def outgoing(self, pairs: Pairs, body: bytes, partition_of: Callable[[Partitioner], int]) -> Outgoing:
        """The record that begins a job, given the headers and the body of a request.

        Raises Overloaded while as many of this client's jobs are open as the pipeline allows.
        """
        headers, plan = decode_headers(pairs), self.plan
        if plan.open_jobs is not None and self._open >= plan.open_jobs:
            msg = f"{self._open} jobs of {self.key} are open already: await some, or raise its limits.open_jobs"
            raise Overloaded(msg)
        request = decode_request(body)
        given = {f"{INPUT}.{tensor.name}": tensor for tensor in request.inputs}
        if not plan.is_fused and not missing(plan, INPUT, [given]):  # what is in the store, a joiner looks up
            emissions = start(plan, request.inputs, request.parameters)
            if len(emissions) == 1 and isinstance(emissions[0], Ask):
                records = outbound(
                    Job.of(headers, plan),
                    emissions,
                    headers.ttl_ms,
                    prefix=self._prefix,
                    partition_of=lambda topic: None if (one := self._first.get(topic)) is None else partition_of(one),
                )
                if len(records) == 1 and isinstance(records[0].emission, Ask):
                    first = records[0]
                    return Outgoing(first.topic, first.partition or 0, first.value, first.headers)
        hop = Hop(headers.id, plan.digest, str(plan.pipeline))
        known = {name for name, _ in pairs}
        added = [pair for pair in encode_headers(type(headers)(headers.id, None, hop=hop)) if pair[0] not in known]
        return Outgoing(self.topic, partition_of(self.partitioner), body, [*pairs, *added])

    def opened(self) -> None:
        """Count a job that somebody here waits for."""
        self._open += 1

    def closed(self, _: object = None) -> None:
        """Count a job that ended."""
        self._open -= 1
