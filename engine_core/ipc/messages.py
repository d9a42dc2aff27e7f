"""The messages between a client and an engine core, defined once. docs/protocol.md describes them for other languages.

On the wire each message is one msgpack map in one ZeroMQ frame; the key `type` names it. Token ids travel as raw
little-endian int32 in a `bin`, columns of numbers likewise: decoding stays flat in the length of a prompt.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from engine_core.ipc.sampling_params import SamplingParams

PROTOCOL_VERSION = 2

DIGEST_BYTES = 16
"""Of the hash that names a block's contents."""
MAX_SALT_CHARS = 256
"""Of what keeps tenants apart in the prefix cache."""
MAX_SAMPLES = 1024
"""Of one prompt in one `AddRequest`."""
MAX_CLIENT_FRAME_BYTES = 32 * 2**20
"""A longer frame from a client is refused by the socket itself (ZMQ_MAXMSGSIZE)."""

Int32Bytes = Annotated[bytes, Meta(max_length=16 * 2**20)]
"""A column of little-endian 4-byte numbers: int32, uint32 (handles) or float32 (log-probabilities)."""
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Handle = Annotated[int, Meta(ge=0, lt=2**32)]
"""A number that a client picks for a request of its own; outputs carry it instead of the id."""

# Error codes of `RequestError`, in the words of the OpenAI API where it has one.
ERROR_INVALID = "invalid_request"
ERROR_CONTEXT_LENGTH = "context_length_exceeded"
ERROR_GRAMMAR = "invalid_grammar"
ERROR_MASK_TIMEOUT = "grammar_timeout"
ERROR_OVERLOADED = "overloaded"
ERROR_RESOURCES = "resources_exhausted"
ERROR_DEADLINE = "deadline_exceeded"
ERROR_ENGINE_DEAD = "engine_dead"
ERROR_SHUTTING_DOWN = "shutting_down"
ERROR_READER_TOO_SLOW = "reader_too_slow"

# Finish reasons of `FinishedRequest`.
FINISH_STOP = "stop"
FINISH_LENGTH = "length"
FINISH_ABORT = "abort"


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True):
    pass


class Hello(_Message, frozen=True, kw_only=True, tag="hello"):
    """A client's first message. `credit` is how many `RequestOutputs` and `BlockEvents` frames it takes before it
    grants more."""

    version: int
    credit: Annotated[int, Meta(ge=1, le=65536)]


class AddRequest(_Message, frozen=True, kw_only=True, tag="add", omit_defaults=True):
    """Starts a request, or several samples of one prompt, each of which is a request from then on: sample i has the
    handle `handle + i` and the sample index `sampling.sample_index + i`. All are admitted, or none is.

    Sent again under the same `request_id` it changes nothing (so a client may retry).
    """

    request_id: Name
    handle: Handle
    num_samples: Annotated[int, Meta(ge=1, le=MAX_SAMPLES)] = 1
    prompt_token_ids: Int32Bytes
    output_token_ids: Int32Bytes = b""
    """Tokens that this request already has (a resume): counted as output by penalties, limits and usage. Of several
    samples each resumes by a message of its own, with its sample index."""
    sampling: SamplingParams = SamplingParams()
    priority: Annotated[int, Meta(ge=-(2**31), lt=2**31)] = 0
    """Lower runs first, under `--scheduling-policy priority`."""
    share_key: Annotated[str, Meta(max_length=64)] | None = None
    """Whose share of the engine this is, under `--scheduling-policy fair`: the digest of an API key, never the key."""
    deadline: float | None = None
    """Seconds since the Unix epoch after which the answer is of no use."""
    cache_salt: Annotated[str, Meta(max_length=MAX_SALT_CHARS)] | None = None
    adapter: Name | None = None
    trace_context: Annotated[str, Meta(max_length=512)] | None = None
    """A W3C `traceparent`, for the timeline."""


class AbortRequest(_Message, frozen=True, kw_only=True, tag="abort", omit_defaults=True):
    """Ends requests of this client at once, answered with this finish reason; unknown handles are ignored."""

    handles: Annotated[list[Handle], Meta(max_length=65536)]
    reason: Literal["abort", "stop"] = "abort"
    """`stop`: the client has found the end of the answer, in its text for example."""


class Bye(_Message, frozen=True, kw_only=True, tag="bye"):
    """The client leaves: its open requests are aborted and nothing more is sent to it."""


class Credit(_Message, frozen=True, kw_only=True, tag="credit", omit_defaults=True):
    """Grants `amount` more `RequestOutputs` and `BlockEvents` frames. `num_replies`: how many `UtilityReply` frames
    have been read since the last time."""

    amount: Annotated[int, Meta(ge=0, le=65536)] = 0
    num_replies: Annotated[int, Meta(ge=0, le=65536)] = 0


class Utility(_Message, frozen=True, kw_only=True, tag="utility", omit_defaults=True):
    """Asks the engine core a question outside the stream of requests: `engine_core/utilities.py` has the methods."""

    call_id: Handle
    method: Name
    arguments: dict[str, Any] = {}


class SubscribeBlockEvents(_Message, frozen=True, kw_only=True, tag="subscribe_block_events"):
    """Asks for `BlockEvents` as long as this client is connected; each frame takes one of its credits."""


class Welcome(_Message, frozen=True, kw_only=True, tag="welcome"):
    """The answer to `Hello`. A changed `epoch` tells a client that the core was replaced and knows no older request."""

    version: int
    epoch: int
    replica: int
    max_model_len: int
    vocab_size: int
    num_kv_tokens: int
    """How many tokens the KV cache holds in all."""


class FinishedRequest(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The one final reply of a request that ran, with its figures (times in seconds)."""

    handle: int
    reason: str
    stop_token_id: int | None
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    num_preemptions: int
    queue_time: float
    """From arrival at the core to the first step that works on it."""
    prefill_time: float
    """From there to the first token."""
    decode_time: float
    """From the first token to the last."""


class StartedRequest(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What is known of a request with its first token."""

    handle: int
    num_cached_tokens: int


class PromptLogprobs(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Log-probabilities of the next `num_tokens` tokens of a prompt, `num_top` alternatives each, as raw columns."""

    handle: int
    num_tokens: int
    num_top: int
    logprobs: bytes  # float32 [num_tokens]
    ranks: bytes  # int32 [num_tokens], 1 is the most likely
    top_token_ids: bytes  # int32 [num_tokens, num_top]
    top_logprobs: bytes  # float32 [num_tokens, num_top]


class RequestError(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The one final reply of a request that could not run or go on."""

    handle: int
    code: str
    message: str
    retry_after: float | None = None


class RequestOutputs(_Message, frozen=True, kw_only=True, tag="outputs", omit_defaults=True):
    """What the steps since the last frame brought this client: columns over requests, finals beside them.

    `handles[i]` got `num_tokens[i]` new tokens, found one request after the other in `token_ids`. Log-probabilities are
    columns over tokens as well, of those requests whose `num_tops` is 0 or more; each token has so many alternatives.
    """

    epoch: int
    replica: int
    step: int
    handles: bytes = b""  # uint32 [num_requests]
    num_tokens: bytes = b""  # int32 [num_requests]
    token_ids: bytes = b""  # int32 [sum of num_tokens]
    started: list[StartedRequest] = []
    """Of those whose first token this is, the ones that go on."""
    num_tops: bytes = b""  # int32 [num_requests], -1: no log-probabilities; empty: nobody has any
    logprobs: bytes = b""  # float32 [num_scored_tokens]
    ranks: bytes = b""  # int32 [num_scored_tokens], 1 is the most likely
    top_token_ids: bytes = b""  # int32 [sum of alternatives], token by token
    top_logprobs: bytes = b""  # float32 [sum of alternatives]
    prompt_logprobs: list[PromptLogprobs] = []
    """Of the next tokens of prompts, of which the first one has none. All have come when an output begins."""
    finished: list[FinishedRequest] = []
    errors: list[RequestError] = []


class BlocksStored(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="stored"):
    """Full blocks that can be found from now on, each following the one before it, the first one `parent`."""

    digests: bytes  # [num_blocks, DIGEST_BYTES]
    parent: bytes
    """The digest before the first; a prompt's first block follows a root that stands for salt and adapter."""
    num_tokens: int
    """Tokens in each block."""
    group: int = 0
    """The group of layers."""


class BlocksRemoved(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="removed"):
    """Blocks that can no longer be found."""

    digests: bytes  # [num_blocks, DIGEST_BYTES]
    group: int = 0


class BlocksCleared(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="cleared"):
    """No block that was stored before can be found any more."""


BlockEvent = BlocksStored | BlocksRemoved | BlocksCleared


class BlockEvents(_Message, frozen=True, kw_only=True, tag="block_events", omit_defaults=True):
    """What happened in the prefix cache in one turn of the core's loop, in order.

    With `gap` batches before number `sequence` are missing, as they are for a new subscriber: ask for a snapshot.
    """

    epoch: int
    replica: int
    sequence: int
    """Grows by one with each batch of a core, for all subscribers alike."""
    gap: bool = False
    events: list[BlockEvent] = []


class UtilityReply(_Message, frozen=True, kw_only=True, tag="utility_reply", omit_defaults=True):
    """The answer to a `Utility` of the same `call_id`: a result, or an error sentence."""

    call_id: Handle
    result: Any = None
    error: str | None = None


ClientMessage = Hello | AddRequest | AbortRequest | Credit | Utility | SubscribeBlockEvents | Bye
CoreMessage = Welcome | RequestOutputs | BlockEvents | UtilityReply
