"""Messages between an engine core and its grammar process, on a `FrameSocket`. Columns are raw numbers.

A matcher is named by a number that the core chooses. Masks never travel here: they lie in the late parts of the ring of
plans.
"""

import msgspec

MAX_ERROR_CHARS = 1024
NO_TOKEN = -1


class _GrammarMessage(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True):
    pass


class OpenMatcher(_GrammarMessage, frozen=True, kw_only=True, tag="open"):
    """Compile `grammar` if it is not known, and hold a matcher that has taken `tokens`; answered by `MatcherOpened`."""

    matcher: int
    grammar: str
    tokens: bytes = b""  # int32


class AcceptTokens(_GrammarMessage, frozen=True, kw_only=True, tag="accept"):
    """What became of the oldest mask of each that was ordered: the token that was sampled under it, or `NO_TOKEN` where
    the step did without because the mask was late. The latter is answered by `MasksReady` once there is a mask."""

    matchers: bytes  # int64 [n]
    tokens: bytes  # int32 [n]


class FillMasks(_GrammarMessage, frozen=True, kw_only=True, tag="fill"):
    """Write the late part of plan `sequence`: mask k by matcher k, once it is known what became of all before it."""

    sequence: int
    matchers: bytes  # int64 [num_masks]


class CloseMatcher(_GrammarMessage, frozen=True, kw_only=True, tag="close"):
    """Its request has ended; masks that are still to be filled for it allow everything, for nobody looks."""

    matcher: int


class GrammarReady(_GrammarMessage, frozen=True, kw_only=True, tag="ready"):
    """The process takes matchers, or says in `refusal` why this model can have none."""

    refusal: str | None = None


class GrammarError(msgspec.Struct, frozen=True, array_like=True):
    """Why a grammar cannot be used."""

    reason: str
    is_wrong: bool = True
    """False: nobody knows whether the grammar is right, for there was no process to try it in."""


class MatcherOpened(_GrammarMessage, frozen=True, kw_only=True, tag="opened"):
    """`error`: there is no matcher then."""

    matcher: int
    error: GrammarError | None = None


class MatcherFailed(_GrammarMessage, frozen=True, kw_only=True, tag="failed"):
    """The matcher cannot go on. Said before the mask is there that it could not fill."""

    matcher: int
    error: str


class MasksReady(_GrammarMessage, frozen=True, kw_only=True, tag="masks_ready"):
    """What these matchers allow next is known now, and is written at once where a step asks for it."""

    matchers: bytes  # int64 [n]


ToGrammar = OpenMatcher | AcceptTokens | FillMasks | CloseMatcher
FromGrammar = GrammarReady | MatcherOpened | MatcherFailed | MasksReady


_encoder = msgspec.msgpack.Encoder()
_to_decoder = msgspec.msgpack.Decoder(ToGrammar)
_from_decoder = msgspec.msgpack.Decoder(FromGrammar)


def encode_grammar_message(message: ToGrammar | FromGrammar) -> bytes:
    return _encoder.encode(message)


def decode_to_grammar(frame: bytes) -> ToGrammar:
    return _to_decoder.decode(frame)


def decode_from_grammar(frame: bytes) -> FromGrammar:
    return _from_decoder.decode(frame)
