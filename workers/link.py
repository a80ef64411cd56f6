"""What ingest and engine say to each other over their unix socket.

Only small control messages cross it; the batches themselves stay in the slots (`workers.slots`). A frame is a 4-byte
little-endian length and a msgpack map that names its type. Both sides come from one installation, so the frames have no
version; they carry a slot's `sequence`, so that an answer to an earlier use of a slot is recognised and dropped.

    engine → ingest   Hello(token)                 first frame of a connection; a wrong token closes it
    ingest → engine   Load                         which models, from where, and the slots
    engine → ingest   Ready | LoadFailed
    ingest → engine   Batch                        inputs are in the slot's input region
    engine → ingest   Part                         a streaming model yielded; outputs are in the slot's output region
    ingest → engine   Continue                     the part was read, go on
    engine → ingest   Done | Failed                outputs are in the slot's output region
    ingest → engine   Forget                       sequences that are over
    ingest → engine   Stop                         finish what was begun, then exit; so does the end of the connection
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Literal

import msgspec

from contracts.messages import Parameters, SequenceStep

_length = struct.Struct("<I")
MAX_FRAME_BYTES = 4 * 1024 * 1024


class Region(msgspec.Struct, frozen=True, gc=False):
    """A tensor inside a slot: where its bytes start and how many there are."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    offset: int
    size: int


class Hello(msgspec.Struct, frozen=True, tag=True):
    """The engine introduces itself with its lease's token."""

    token: str
    pid: int


class ModelToLoad(msgspec.Struct, frozen=True):
    """One model version; `spec` is the ModelSpec as JSON, `folder` holds its artefacts.

    `digest` is what their digest was when the version was registered, empty when it was not taken. `allow_code` is the
    deployment's word, without which nothing of the version may run that is code. Batches of the sizes in `timed` are to
    be measured before the first request; `buckets` are those that a padded batch may have.
    """

    key: str
    spec: str
    folder: str
    digest: str = ""
    allow_code: bool = False
    timed: tuple[int, ...] = ()
    buckets: tuple[int, ...] = ()


class Load(msgspec.Struct, frozen=True, tag=True):
    """What the engine is to load, and where its slots are. `threads` is the lease's share of cores, at least 1."""

    models: tuple[ModelToLoad, ...]
    slots_path: str
    slot_count: int
    input_bytes: int
    output_bytes: int
    threads: int
    device: str


class Timing(msgspec.Struct, frozen=True):
    """How long batches of `rows` rows took, each run."""

    rows: int
    seconds: tuple[float, ...]


class Ready(msgspec.Struct, frozen=True, tag=True):
    """All models are loaded and warm. `device` says where they really run, for receipts; `timings` what was measured of
    each model, in the order of Load. `graphs` are how many graphs each model has, and how many could not be made.
    """

    device: str
    load_seconds: float
    timings: tuple[tuple[Timing, ...], ...] = ()
    graphs: tuple[tuple[int, int], ...] = ()


class LoadFailed(msgspec.Struct, frozen=True, tag=True):
    """A model cannot be loaded; the engine exits after this."""

    message: str


class Batch(msgspec.Struct, frozen=True, tag=True):
    """Run a batch of model `model` (index into Load.models) over `rows` rows, each a step of a sequence if there are
    `sequences`.
    """

    slot: int
    sequence: int
    model: int
    rows: int
    inputs: tuple[Region, ...]
    parameters: Parameters = {}
    sequences: tuple[SequenceStep, ...] = ()


class Part(msgspec.Struct, frozen=True, tag=True):
    """A streaming model yielded, and waits for Continue. `rows` are the batch's rows that the outputs belong to, None
    for all; with `final` they get nothing more. `step_us` is how long the model took since it went on last.
    """

    slot: int
    sequence: int
    outputs: tuple[Region, ...]
    rows: tuple[int, ...] | None
    final: bool
    step_us: int


class Continue(msgspec.Struct, frozen=True, tag=True):
    """The part was read: go on, or with `stop` end here, because nobody waits. `gone` are all rows without a caller."""

    slot: int
    sequence: int
    gone: tuple[int, ...] = ()
    stop: bool = False


class Done(msgspec.Struct, frozen=True, tag=True):
    """A batch's outputs stand in its slot.

    After parts there may be no outputs, and `step_us` is how long the model took since it went on last.
    """

    slot: int
    sequence: int
    outputs: tuple[Region, ...]
    compute_us: int
    step_us: int = 0


class InvalidRow(msgspec.Struct, frozen=True, gc=False):
    """A row of a batch that the model refuses, and what is wrong with it."""

    row: int
    why: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """A batch has no outputs.

    `kind`: `error` (the model raised), `memory` (out of memory at this size), `output` (the outputs contradict the
    model's spec or do not fit the slot), `invalid` (the model refuses the content: of these `rows`, each for a reason
    of its own, or of the batch as a whole).
    """

    slot: int
    sequence: int
    kind: Literal["error", "memory", "output", "invalid"]
    message: str
    rows: tuple[InvalidRow, ...] = ()


class Forget(msgspec.Struct, frozen=True, tag=True):
    """These sequences of a model are over; nobody will ask for their states."""

    model: int
    sequences: tuple[str, ...]


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Finish and exit."""


def untimed(load: Load) -> Load:
    """The same for an engine that takes another's place: it is waited for, and nothing need be measured again."""
    models = tuple(msgspec.structs.replace(model, timed=()) for model in load.models)
    return msgspec.structs.replace(load, models=models)


Message = Hello | Load | Ready | LoadFailed | Batch | Part | Continue | Done | Failed | Forget | Stop

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """A message as one frame."""
    body = _encoder.encode(message)
    return _length.pack(len(body)) + body


class FrameDecoder:
    """Collects received bytes and yields the messages that are complete."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Take received bytes; yields each whole message. Raises ValueError when the peer speaks something else."""
        rest, position = self._rest, 0
        if rest:
            rest += data
        received = rest or data
        try:
            while len(received) - position >= _length.size:
                (size,) = _length.unpack_from(received, position)
                if size > MAX_FRAME_BYTES:
                    msg = f"a frame of {size} bytes on the engine link"
                    raise ValueError(msg)
                begin = position + _length.size
                if begin + size > len(received):
                    break
                message = _decoder.decode(received[begin : begin + size])
                position = begin + size
                yield message
        except (msgspec.MsgspecError, RecursionError) as exc:
            msg = f"a frame on the engine link is no message: {exc}"
            raise ValueError(msg) from exc
        finally:
            if received is rest:
                del rest[:position]
            else:
                rest += received[position:]
