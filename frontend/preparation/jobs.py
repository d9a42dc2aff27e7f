"""The kinds of work that a request may ask of a frontend before the engine hears of it, one type each.

A job that is light runs where it is made, on the event loop; every other one in a preparation process (`pool.py`). Both
call the same `run`.
"""

from collections.abc import Sequence
from typing import ClassVar, Generic, TypeVar

import msgspec

from frontend.errors import bad_request
from frontend.grammars.request_grammar import RequestGrammar
from frontend.grammars.tool_calls import InputGrammar
from frontend.preparation.asking import asking
from frontend.preparation.preparer import Preparer
from frontend.protocol.chat import ChatCompletionRequest, ChatMessage
from frontend.protocol.decode import decode_body
from frontend.protocol.structure import StructureFields, structure_of
from frontend.protocol.tokenization import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse
from frontend.text.control_tokens import unmarked
from frontend.tools import template_tools

LIGHT_BYTES = 8192
"""Of a request: what takes a millisecond or two. A longer one leaves the event loop."""
LIGHT_MESSAGES = 64

R = TypeVar("R")


class PreparedChat(msgspec.Struct, frozen=True):
    text: str
    token_ids: bytes
    """int32."""
    grammar: RequestGrammar | None


class Answer(msgspec.Struct, frozen=True):
    """A whole answer, but for the model's name, which the process that listens knows."""

    model: str | None
    unknown_fields: list[str]
    json: bytes


class Job(msgspec.Struct, Generic[R], frozen=True):
    """One piece of work with all that it needs. Each kind below says what it is: a message type cannot be an abstract
    class, so what a kind leaves out fails at its first use."""

    result_type: ClassVar[type]

    @property
    def is_light(self) -> bool:
        """Whether it takes some milliseconds at most, whatever the request says."""
        raise NotImplementedError

    def run(self, preparer: Preparer) -> R:
        """Raises an `ApiError` where the request cannot be served."""
        raise NotImplementedError


class ChatJob(Job[PreparedChat], tag=True, frozen=True):
    """A conversation's text and token ids, and what the answer has to be."""

    result_type: ClassVar[type] = PreparedChat
    request: ChatCompletionRequest
    wants_grammar: bool
    input_grammars: dict[str, InputGrammar] = {}
    """Of custom tools, by their names."""

    @property
    def is_light(self) -> bool:
        request = self.request
        return (
            _is_short(request.messages)
            and request.chat_template is None
            and not self.input_grammars
            and not (self.wants_grammar and _has_patterns(request))
        )

    def run(self, preparer: Preparer) -> PreparedChat:
        text = preparer.chat_text(self.request)
        # The template writes the special tokens itself.
        token_ids = preparer.encode(text, bool(self.request.add_special_tokens))
        text = unmarked(text)
        grammar = preparer.chat_grammar(self.request, text, self.input_grammars) if self.wants_grammar else None
        return PreparedChat(text, token_ids, grammar)


class GrammarJob(Job[RequestGrammar | None], tag=True, frozen=True):
    """What the answer to plain texts has to be."""

    result_type: ClassVar[type] = RequestGrammar | None  # type: ignore[assignment]  # a union is no type to mypy
    request: StructureFields

    @property
    def is_light(self) -> bool:
        return asking().num_bytes <= LIGHT_BYTES and not _has_patterns(self.request)

    def run(self, preparer: Preparer) -> RequestGrammar | None:
        return preparer.plain_grammar(self.request)


class EncodeJob(Job[list[bytes]], tag=True, frozen=True):
    """The token ids of texts, int32 each."""

    result_type: ClassVar[type] = list[bytes]
    texts: list[str]
    add_special_tokens: bool

    @property
    def is_light(self) -> bool:
        return sum(map(len, self.texts)) <= LIGHT_BYTES

    def run(self, preparer: Preparer) -> list[bytes]:
        return [preparer.encode(text, self.add_special_tokens) for text in self.texts]


class DecodeTokensJob(Job[str], tag=True, frozen=True):
    """The text of token ids, int32."""

    result_type: ClassVar[type] = str
    token_ids: bytes

    @property
    def is_light(self) -> bool:
        return len(self.token_ids) <= LIGHT_BYTES

    def run(self, preparer: Preparer) -> str:
        return preparer.decode(_int32(self.token_ids))


class TokenizeJob(Job[Answer], tag=True, frozen=True):
    """The answer of `/tokenize` to a body."""

    result_type: ClassVar[type] = Answer
    body: bytes
    is_strict: bool

    @property
    def is_light(self) -> bool:
        return len(self.body) <= LIGHT_BYTES and b"chat_template" not in self.body

    def run(self, preparer: Preparer) -> Answer:
        asked, unknown = decode_body(self.body, TokenizeRequest, strict=self.is_strict)
        if (asked.prompt is None) == (asked.messages is None):
            raise bad_request("Give either prompt or messages.", "prompt")
        if asked.messages is None:
            token_ids = preparer.tokenizer.encode(asked.prompt or "", asked.add_special_tokens is not False)
        else:
            text = preparer.render_chat(
                asked.messages,
                tools=template_tools(asked.tools, None),
                add_generation_prompt=asked.add_generation_prompt,
                continue_final_message=bool(asked.continue_final_message),
                kwargs=asked.chat_template_kwargs,
                template=asked.chat_template,
            )
            token_ids = preparer.tokenizer.encode(text, bool(asked.add_special_tokens))
        answer = TokenizeResponse(count=len(token_ids), max_model_len=preparer.max_model_len, tokens=token_ids)
        if asked.return_token_strs:
            answer.token_strs = [preparer.tokenizer.token_text(token_id) for token_id in token_ids]
        return Answer(asked.model, unknown, msgspec.json.encode(answer))


class DetokenizeJob(Job[Answer], tag=True, frozen=True):
    """The answer of `/detokenize` to a body."""

    result_type: ClassVar[type] = Answer
    body: bytes
    is_strict: bool

    @property
    def is_light(self) -> bool:
        return len(self.body) <= LIGHT_BYTES

    def run(self, preparer: Preparer) -> Answer:
        asked, unknown = decode_body(self.body, DetokenizeRequest, strict=self.is_strict)
        if asked.tokens and not 0 <= min(asked.tokens) <= max(asked.tokens) < 2**31:
            raise bad_request("tokens must have token ids from 0 on.", "tokens")
        text = preparer.decode(asked.tokens)
        return Answer(asked.model, unknown, msgspec.json.encode(DetokenizeResponse(prompt=text)))


AnyJob = ChatJob | GrammarJob | EncodeJob | DecodeTokensJob | TokenizeJob | DetokenizeJob


def _int32(data: bytes) -> Sequence[int]:
    return memoryview(data).cast("i")


def _is_short(messages: list[ChatMessage]) -> bool:
    """What came before in a stored conversation is not part of the request's bytes, so texts are counted too."""
    if asking().num_bytes > LIGHT_BYTES or len(messages) > LIGHT_MESSAGES:
        return False
    return sum(_num_chars(message) for message in messages) <= LIGHT_BYTES


def _num_chars(message: ChatMessage) -> int:
    content = message.content or ""
    texts = [content] if isinstance(content, str) else [part.text or part.refusal or "" for part in content]
    calls = [call.function.arguments for call in message.tool_calls or ()]
    return sum(map(len, [*texts, *calls, message.reasoning or "", message.reasoning_content or ""]))


def _has_patterns(request: StructureFields) -> bool:
    """Whether its structure is one that can be short and take long."""
    structure = structure_of(request)
    asked = None if structure is None else structure.asked
    return asked is not None and not (asked.regex is asked.grammar is asked.structural_tag is None)


_encoder = msgspec.msgpack.Encoder()
_json_encoder = msgspec.json.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyJob)
_json_decoder = msgspec.json.Decoder(AnyJob)
_MSGPACK, _JSON = b"m", b"j"


def encode_job(job: AnyJob) -> bytes:
    try:
        return _MSGPACK + _encoder.encode(job)
    except OverflowError:  # a schema may have whole numbers of any length, and only JSON has them
        return _JSON + _json_encoder.encode(job)


def decode_job(frame: bytes | bytearray) -> AnyJob:
    decoder = _decoder if frame[:1] == _MSGPACK else _json_decoder
    return decoder.decode(frame[1:])
