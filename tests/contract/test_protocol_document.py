"""What docs/protocol.md says is what the code does: its tables, its numbers and the bytes of its example."""

from __future__ import annotations

import re
from pathlib import Path

import msgpack
import msgspec
import numpy as np
import pytest

from contracts import codec, messages, tensors
from contracts.errors import ConfigurationError, InvalidRequest
from contracts.messages import ReplyAddress, RequestBody, RequestHeaders, SequenceStep, Status
from contracts.serving_specs import BatchingSpec
from contracts.specs import ModelSpec, parse_model
from workers.ingest import responder, validate

ROOT = Path(__file__).resolve().parents[2]
REPLY = ReplyAddress("headrace.replies.node-demo", 0, "q7Rk2mZx")
TEXT = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return re.split(r"^## ", TEXT.split(f"\n## {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def table_words(title: str, header: str) -> list[str]:
    """The words in code type in the first column of the table of that section whose header row begins so."""
    rows = section(title).split(f"\n| {header} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [word for row in rows for word in re.findall(r"`([^`]+)`", row.split("|")[1])]


def example_bytes(name: str) -> bytes:
    dump = section("Worked example").split(f"```hexdump {name}\n", 1)[1].split("```", 1)[0]
    return b"".join(bytes.fromhex(line[6:53]) for line in dump.splitlines())


def example_headers(before: str) -> list[tuple[str, bytes]]:
    """The headers in the block that follows these words."""
    block = section("Worked example").split(f"{before}\n\n```\n", 1)[1].split("```", 1)[0]
    return [(key, value.encode()) for key, value in (line.split() for line in block.splitlines())]


def first_image() -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    with np.load(ROOT / "deploy" / "fleet" / "digits.npz") as archive:
        return archive["images"][:1].astype(np.float32)  # type: ignore[no-any-return]


def model(name: str) -> ModelSpec:
    tensor = "{name: %s, datatype: FP32, shape: [-1, %d]}"
    text = f"{{name: {name}, version: 2, backend: onnx, inputs: [{tensor % ('image', 64)}]"
    return parse_model(f"{text}, outputs: [{tensor % ('scores', 10)}]}}", "model.yaml")


def test_the_version_is_named() -> None:
    assert TEXT.startswith(f"# The protocol, version {messages.WIRE_VERSION}\n")


def test_every_request_header_is_in_its_table() -> None:
    every = RequestHeaders("id", ReplyAddress("t", 0, "k"), 1, "m", 1, 2, "high", "t", "p", stream=True)
    every = msgspec.structs.replace(every, sequence=SequenceStep("s", start=True, end=True))
    assert sorted(table_words("Request", "header")) == sorted(key for key, _ in codec.encode_headers(every))


def test_every_key_of_a_request_body_is_in_its_table() -> None:
    words = table_words("Request", "key") + table_words("Pipelines", "key")
    assert words == list(messages.RequestBody.__struct_fields__)


def test_every_header_of_a_step_is_in_its_table() -> None:
    hop = messages.Hop("job", "0" * 32, "p@1", "step", (1,), 5)
    plain, step = RequestHeaders("id", None), RequestHeaders("id", None, hop=hop)
    known = {key for key, _ in codec.encode_headers(plain)}
    added = {key for key, _ in codec.encode_headers(step)} - known
    assert set(table_words("Pipelines", "header")) == added


def test_every_response_header_is_in_its_table() -> None:
    headers = codec.encode_stream_headers("id", Status.OK, "token", index=1, run="run")
    assert table_words("Response", "header") == [key for key, _ in headers]


def test_every_key_of_a_response_body_is_in_its_table() -> None:
    assert table_words("Response", "key") == list(messages.ResponseBody.__struct_fields__)


def test_every_key_of_a_receipt_is_in_its_table() -> None:
    assert table_words("Response", "key of `receipt`") == list(messages.Receipt.__struct_fields__)


def test_every_status_is_in_its_table() -> None:
    assert table_words("Response", "status") == [status.value for status in Status]


def test_every_key_of_a_tensor_is_in_its_table() -> None:
    assert table_words("Tensors", "key") == list(tensors.Tensor.__struct_fields__)


def test_every_datatype_is_in_its_table_with_its_size() -> None:
    rows = section("Tensors").split("\n| datatype |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    sizes: dict[str, int] = {}
    for row in rows:
        _, words, numbers, *_ = row.split("|")
        names = re.findall(r"`([^`]+)`", words)
        counts = [int(number) for number in re.findall(r"\d+", numbers)]
        sizes |= dict(zip(names, counts if len(counts) == len(names) else counts * len(names), strict=True))
    assert sizes == {**tensors.type_sizes, tensors.BYTES: 4}


@pytest.mark.parametrize(
    "said",
    [
        f"at most {messages.MAX_TTL_MS} (6 h); {messages.DEFAULT_TTL_MS} when absent",
        f"| tensors in a request | 1 to {codec.MAX_TENSORS} | `INVALID` |",
        f"| dimensions of a tensor | {tensors.MAX_DIMENSIONS} | `INVALID` |",
        f"| request body | {codec.MAX_INLINE_BYTES // 1024} KiB ",
        f"| response body | {responder.MAX_RESPONSE_BYTES // 1024} KiB |",
    ],
)
def test_the_limits_are_the_ones_in_force(said: str) -> None:
    assert said in TEXT


def test_rows_beyond_what_the_limits_name_are_refused_and_no_others() -> None:
    assert "| 1 to the model's `max_request_rows`, which is its `max_batch_size` unless it says otherwise |" in TEXT
    for batching, most in (
        (BatchingSpec(max_batch_size=2), 2),
        (BatchingSpec(max_batch_size=2, max_request_rows=5), 5),
    ):
        validator = validate.Validator(model("digits").model_copy(update={"batching": batching}))
        rows = [
            RequestBody((tensors.Tensor.from_numpy("image", np.zeros((count, 64), np.float32)),))
            for count in (most, most + 1)
        ]
        assert validator.check(rows[0]).rows == most
        with pytest.raises(InvalidRequest, match=f"takes 1 to {most} in a request"):
            validator.check(rows[1])


@pytest.mark.parametrize("tenant", ["Acme", "a" * 65, "é"])
def test_a_tenant_that_is_no_name_is_invalid(tenant: str) -> None:
    assert "a name as [above](#topics), or the answer is `INVALID`" in TEXT
    with pytest.raises(InvalidRequest):
        codec.decode_headers([("v", b"1.0"), ("id", b"x"), ("tenant", tenant.encode())])


def test_the_model_name_that_the_page_refuses_is_refused_for_the_one_it_recommends() -> None:
    assert "`llama-3.1` has to be\n  `llama-3-1`" in TEXT
    with pytest.raises(ConfigurationError, match="'llama-3-1'"):
        model("llama-3.1")
    assert model("llama-3-1").name == "llama-3-1"


def test_the_request_of_the_example_is_what_the_codec_writes() -> None:
    tensor = tensors.Tensor.from_numpy("image", first_image())
    assert example_bytes("request") == codec.encode_request([tensor])
    headers = RequestHeaders("9b1c0e4d5a6f4b7c8d9e0f1a2b3c4d5e", REPLY, ttl_ms=10_000)
    assert sorted(example_headers("`acks=all`, with the headers")) == sorted(codec.encode_headers(headers))
    assert codec.decode_headers(example_headers("`acks=all`, with the headers")) == headers


def test_the_request_of_the_example_can_be_written_by_any_msgpack_library() -> None:
    image = first_image()
    tensor = {"name": "image", "datatype": "FP32", "shape": list(image.shape), "data": image.tobytes()}
    assert msgpack.packb({"inputs": [tensor]}) == example_bytes("request")


def test_the_response_of_the_example_is_read_as_the_text_says() -> None:
    response, token = codec.decode_response(example_headers("has the headers"), example_bytes("response"))
    assert (response.status, token, f"{response.model}@{response.version}") == (Status.OK, REPLY.token, "digits@2")
    assert response["scores"].to_numpy().argmax(axis=1).tolist() == [0]
    receipt = response.receipt
    assert (receipt.queued_us, receipt.batched_us, receipt.computed_us, receipt.batch_rows) == (412, 35, 388, 1)


def test_the_response_of_the_example_has_the_bytes_that_the_codec_writes() -> None:
    body = msgspec.msgpack.decode(example_bytes("response"), type=messages.ResponseBody)
    assert codec.encode_response(body) == example_bytes("response")
