"""A loaded model: what a batch goes through between its frame and the answer.

Nothing that a model does may end the engine while it can be helped: whatever it raises, SystemExit and a stray
CancelledError included, becomes the answer to that batch. That is safe because nobody else raises here: the engine's
signal handler only sets a flag. What kills the process outright is left to the ingest process to find out.
"""

from __future__ import annotations

import logging
import os
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

from pydantic import ValidationError

from contracts.artefacts import RUNS_CODE, digest_folder
from contracts.errors import ModelLoadError
from contracts.specs import ModelSpec
from contracts.tensors import BYTES
from workers.backends import new_backend
from workers.backends.base import (
    Arrays,
    Backend,
    Graphs,
    Launched,
    ModelContext,
    PipelinedBackend,
    StatefulBackend,
    StreamingBackend,
    visible_device,
)
from workers.backends.device_faults import DeviceLost
from workers.engine import blame
from workers.engine.exchange import OutputMismatch, OutputRegions, made_up_inputs, read_inputs, warm_up_sizes
from workers.engine.states import States, made_up
from workers.engine.streaming import Exchange, LinkEnded, first_step, nobody, stream
from workers.engine.timing import measure
from workers.link import Batch, Done, Failed, ModelToLoad, Region, Timing
from workers.slots import SlotFile

log = logging.getLogger(__name__)


class LoadedModel:
    """One model version and the slots that its batches stand in."""

    def __init__(self, spec: ModelSpec, backend: Backend, slots: SlotFile) -> None:
        self.spec, self.backend = spec, backend
        self._slots = slots
        self._outputs = OutputRegions(spec.outputs, slots.output_bytes)
        self._seen: set[str] = set()
        self._streaming = cast("StreamingBackend", backend) if spec.streaming else None
        self._stateful = cast("StatefulBackend", backend) if spec.sequences is not None else None
        self._pipelined = cast("PipelinedBackend", backend) if getattr(backend, "is_pipelined", False) else None
        self.graphs = Graphs()
        self.states = States()

    @classmethod
    def load(cls, model: ModelToLoad, slots: SlotFile, threads: int, cache: Path | None = None) -> LoadedModel:
        """Load and warm up; `cache` is a folder for what libraries compile. Raises ModelLoadError."""
        try:
            spec = ModelSpec.model_validate_json(model.spec)
        except ValidationError as exc:
            raise ModelLoadError(f"{model.key}: its spec cannot be read: {exc}") from exc
        _check_artefacts(model, spec)
        backend = new_backend(spec.backend)
        context = ModelContext(spec, Path(model.folder), threads, visible_device(os.environ), _cache_of(model, cache))
        try:
            backend.load(context)
        except ModelLoadError:
            raise
        except BaseException as exc:
            raise ModelLoadError(f"{model.key} cannot be loaded: {blame.in_a_line(exc)}") from exc
        loaded = cls(spec, backend, slots)
        loaded.warm_up()
        loaded.capture(model.buckets)
        return loaded

    def warm_up(self) -> None:
        """Run made-up batches, so that the first requests do not pay for first-time work.

        A model may refuse zeros, so its complaint is only logged; outputs that contradict the spec, or a largest batch
        that does not fit, would fail every request: ModelLoadError.
        """
        spec = self.spec
        for rows in warm_up_sizes(spec.inputs, spec.batching.max_batch_size, self._slots.input_bytes):
            inputs = made_up_inputs(spec.inputs, rows)
            if inputs is None:
                return
            try:
                self._try(inputs, rows)
            except OutputMismatch as exc:
                raise ModelLoadError(f"{spec.key}: warm-up with {rows} rows of zeros: {exc}") from exc
            except DeviceLost as exc:
                raise ModelLoadError(f"{spec.key}: warm-up with {rows} rows of zeros lost the device: {exc}") from exc
            except MemoryError as exc:
                raise ModelLoadError(
                    f"{spec.key}: no memory for a batch of {rows} rows; lower max_batch_size in model.yaml"
                ) from exc
            except BaseException as exc:  # noqa: BLE001 - code of the model may raise anything
                log.warning(
                    "%s is not warmed up, it refuses %d rows of zeros: %s", spec.key, rows, blame.in_a_line(exc)
                )
                return

    @property
    def is_pipelined(self) -> bool:
        """Whether batches are launched and answered by the completer."""
        return self._pipelined is not None

    def capture(self, sizes: Sequence[int]) -> None:
        """Make graphs for the sizes that padded batches have, where all shapes are known. Raises ModelLoadError."""
        tensors = self.spec.inputs
        has_open = len(self.spec.request_inputs) < len(tensors) or any(-1 in tensor.shape[1:] for tensor in tensors)
        if self._pipelined is None or has_open or not self.spec.torch.graphs:
            return
        most = max(warm_up_sizes(tensors, self.spec.batching.max_batch_size, self._slots.input_bytes))
        batches = (made_up_inputs(tensors, rows) for rows in sizes if rows <= most)
        try:
            self.graphs = self._pipelined.capture([batch for batch in batches if batch is not None])
        except Exception as exc:
            raise ModelLoadError(f"{self.spec.key}: the device failed while graphs were made: {exc}") from exc

    def pin(self) -> bool:
        """Tell the device of the slots; whether it took them."""
        return self._pipelined is not None and self._pipelined.pin(self._slots.memory)

    def measure(self, sizes: Sequence[int], seconds: float) -> tuple[Timing, ...]:
        """How long batches of these sizes take, found out in about so many seconds; nothing where zeros say nothing.

        That is so with dimensions that are open, since the time depends on them, with inputs that ingest fills, and
        with streams.
        """
        spec = self.spec
        if self._streaming is not None or len(spec.request_inputs) < len(spec.inputs):
            return ()
        if any(-1 in tensor.shape[1:] or tensor.datatype == BYTES for tensor in spec.inputs):
            return ()
        most = max(warm_up_sizes(spec.inputs, spec.batching.max_batch_size, self._slots.input_bytes))
        inputs = {rows: cast("Arrays", made_up_inputs(spec.inputs, rows)) for rows in sizes if rows <= most}
        try:
            return measure(lambda rows: self._try(inputs[rows], rows), inputs, seconds)
        except BaseException as exc:  # noqa: BLE001 - code of the model may raise anything
            log.info("%s is not measured: %s", spec.key, blame.in_a_line(exc))
            return ()

    def _try(self, inputs: Arrays, rows: int) -> None:
        if self._streaming is not None:
            first_step(self._streaming.stream(inputs, rows, {}), self._outputs, rows)
        elif self._stateful is not None:
            self._outputs.place(self._stateful.step(inputs, rows, {}, made_up(rows)), rows)
        else:
            self._outputs.place(self.backend.infer(inputs, rows, {}), rows)

    def run(self, batch: Batch, exchange: Exchange = nobody) -> Done | Failed:
        """Run a batch whose inputs stand in its slot; afterwards its outputs do. A stream's parts go to `exchange`.

        Raises LinkEnded when that cannot be done.
        """
        started, step_us = time.perf_counter_ns(), 0
        slots, slot, rows = self._slots, batch.slot, batch.rows
        try:
            inputs = read_inputs(slots.input(slot), batch.inputs)
            if self._streaming is not None:
                steps = self._streaming.stream(inputs, rows, batch.parameters)
                regions, step_us = stream(steps, batch, self._outputs, slots.output(slot), exchange)
            elif self._stateful is not None:
                sequences = self.states.of(batch.sequences, rows)
                outputs = self._stateful.step(inputs, rows, batch.parameters, sequences)
                regions = self._outputs.write(outputs, rows, slots.output(slot))
                self.states.keep(sequences)
            else:
                outputs = self.backend.infer(inputs, rows, batch.parameters)
                regions = self._outputs.write(outputs, rows, slots.output(slot))
        except (LinkEnded, DeviceLost):
            raise
        except BaseException as exc:  # noqa: BLE001 - code of the model may raise anything
            return self._failed(batch, exc)
        return Done(slot, batch.sequence, regions, (time.perf_counter_ns() - started) // 1000, step_us)

    def launch(self, batch: Batch) -> InFlight | Failed:
        """Give a batch to the device; its outputs will stand in its slot. Raises DeviceLost."""
        assert self._pipelined is not None  # noqa: S101 - the engine asks before
        started, launched = time.perf_counter_ns(), None
        try:
            inputs = read_inputs(self._slots.input(batch.slot), batch.inputs)
            launched = self._pipelined.launch(inputs, batch.rows, batch.parameters)
            regions, arrays = self._outputs.room(launched.outputs, batch.rows, self._slots.output(batch.slot))
            launched.fetch(arrays)
        except DeviceLost:
            raise
        except BaseException as exc:  # noqa: BLE001 - code of the model may raise anything
            if launched is not None:
                launched.abandon()
            return self._failed(batch, exc)
        return InFlight(self, batch, launched, regions, started)

    def finish(self, flight: InFlight, began_ns: int) -> Done | Failed:
        """Wait for a launched batch. Raises DeviceLost."""
        batch = flight.batch
        try:
            flight.launched.wait()
        except DeviceLost:
            raise
        except Exception as exc:  # noqa: BLE001 - what the device says of this batch
            return self._failed(batch, exc)
        compute_us = (time.perf_counter_ns() - max(flight.started_ns, began_ns)) // 1000
        return Done(batch.slot, batch.sequence, flight.regions, compute_us)

    def _failed(self, batch: Batch, exc: BaseException) -> Failed:
        answer = blame.failed(batch, exc)
        # Each place is logged once with its lines of code: a model that always fails must not fill the disk. The text
        # of the exception stays out, since libraries quote their input in it.
        place = _place(exc)
        if answer.kind != "invalid" and place not in self._seen:
            self._seen.add(place)
            code = "".join(traceback.format_tb(exc.__traceback__))
            log.warning("a batch of %s (%d rows) failed: %s\n%s", self.spec.key, batch.rows, place, code)
        return answer

    def close(self) -> None:
        """Let go of the model; its complaints at this point are logged."""
        try:
            self.backend.close()
        except Exception:
            log.exception("%s failed while it was closed", self.spec.key)


class InFlight(NamedTuple):
    """A batch that the device has been given."""

    model: LoadedModel
    batch: Batch
    launched: Launched
    regions: tuple[Region, ...]
    started_ns: int

    def finish(self, began_ns: int) -> Done | Failed:
        """Wait for the outputs; the device was busy with others until `began_ns`. Raises DeviceLost."""
        return self.model.finish(self, began_ns)


def _cache_of(model: ModelToLoad, cache: Path | None) -> Path | None:
    """Where things compiled from this version's artefacts may be kept; nowhere when it is not known that they are."""
    return cache / f"{model.key}-{model.digest.removeprefix('sha256:')[:16]}" if cache and model.digest else None


def _check_artefacts(model: ModelToLoad, spec: ModelSpec) -> None:
    """Refuse to load what is not what was registered, and code that nobody allowed. Raises ModelLoadError."""
    if spec.backend in RUNS_CODE and not model.allow_code:
        raise ModelLoadError(
            f"{model.key} would run code of its own ({RUNS_CODE[spec.backend]}), which its deployment does not allow: "
            "say `allow_code: true` there if you trust it"
        )
    if not model.digest:
        return
    try:
        found = digest_folder(Path(model.folder))
    except OSError as exc:
        raise ModelLoadError(f"{model.key}: {model.folder} cannot be read: {exc}") from exc
    if found != model.digest:
        raise ModelLoadError(
            f"{model.key}: the files in {model.folder} are not those that were registered ({model.digest[:19]}… then, "
            f"{found[:19]}… now): put them back, or give the new ones a version of their own"
        )


def _place(exc: BaseException) -> str:
    innermost = exc.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    where = f"{innermost.tb_frame.f_code.co_filename}:{innermost.tb_lineno}" if innermost is not None else "?"
    return f"{type(exc).__name__} in {where}"
