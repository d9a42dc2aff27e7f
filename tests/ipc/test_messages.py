"""The wire: closed types, bounded sizes, typed errors only."""

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_core.ipc.codec import ProtocolError, decode_client_message, decode_core_message, encode, int32_column
from engine_core.ipc.control import ControlLink, Drain, LinkClosed, Progress
from engine_core.ipc.messages import AddRequest, Hello, RequestError, RequestOutputs
from engine_core.ipc.sampling_params import SamplingParams

ADD = AddRequest(
    request_id="a",
    handle=3,
    prompt_token_ids=np.arange(5, dtype=np.int32).tobytes(),
    sampling=SamplingParams(temperature=0.5, stop_token_ids=[4], logit_bias={3: -1.5}, seed=-(2**63)),
)


def test_messages_survive_the_wire() -> None:
    assert decode_client_message(encode(ADD)) == ADD
    outputs = RequestOutputs(epoch=1, replica=0, step=2, errors=[RequestError(handle=1, code="x", message="y")])
    assert decode_core_message(encode(outputs)) == outputs


def test_the_wire_is_plain_msgpack_with_raw_token_ids() -> None:
    plain = msgpack.unpackb(encode(ADD), strict_map_key=False)
    assert plain["type"] == "add"
    assert int32_column(plain["prompt_token_ids"]).tolist() == [0, 1, 2, 3, 4]
    assert plain["sampling"]["logit_bias"] == {3: -1.5}


@pytest.mark.parametrize(
    "message",
    [
        {"type": "nothing"},
        {"type": "hello", "version": 1},
        {"type": "hello", "version": 1, "credit": 0},
        {"type": "hello", "version": 1, "credit": 1, "more": 1},
        {"type": "abort", "handles": [-1]},
        {"type": "add", "request_id": "", "handle": 1, "prompt_token_ids": b""},
        {"type": "add", "request_id": "a", "handle": 1, "prompt_token_ids": [1, 2]},
        {"type": "add", "request_id": "a", "handle": 1, "prompt_token_ids": b"", "sampling": {"top_p": 0.0}},
        {"type": "add", "request_id": "a", "handle": 1, "prompt_token_ids": b"", "sampling": {"seed": 2**63}},
        [1, 2],
        7,
    ],
)
def test_what_is_not_a_message_is_a_protocol_error(message: object) -> None:
    with pytest.raises(ProtocolError):
        decode_client_message(msgpack.packb(message))


@given(st.data())
def test_mutated_frames_give_typed_errors_only(data: st.DataObject) -> None:
    frame = bytearray(encode(data.draw(st.sampled_from([ADD, Hello(version=1, credit=5)]))))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode_client_message(bytes(frame[: data.draw(st.integers(0, len(frame)))]))
    except ProtocolError:
        return
    assert decode_client_message(encode(decoded)) == decoded or "nan" in repr(decoded)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 3.0),
        ("frequency_penalty", -3.0),
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("logprobs", 21),
        ("logit_bias", {1: float("inf")}),
        ("stop_token_ids", [1] * 129),
    ],
)
def test_sampling_out_of_range_names_the_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        SamplingParams(**{field: value})


def test_a_column_of_odd_length_is_refused() -> None:
    with pytest.raises(ProtocolError, match="multiple of 4"):
        int32_column(b"12345")


def test_control_link() -> None:
    ours, theirs = ControlLink.pair()
    assert ours.receive() is None
    theirs.send(Progress(stage="weights", done=1, total=2, unit="B"))
    ours.send(Drain(timeout=1.5))
    assert ours.receive() == Progress(stage="weights", done=1, total=2, unit="B")
    assert theirs.receive() == Drain(timeout=1.5)
    theirs.close()
    with pytest.raises(LinkClosed):
        ours.receive()
    with pytest.raises(LinkClosed):
        ours.send(Drain(timeout=0.0))
    ours.close()
