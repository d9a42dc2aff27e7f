"""Detokenization and stop strings: however a text is cut, the same text comes out."""

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

from frontend.client import Finished, TokenDelta
from frontend.client.deltas import int32_array
from frontend.detokenizer import Detokenizer
from frontend.llm.sampling_params import SamplingParams
from frontend.output_processor import OutputOptions, OutputProcessor
from frontend.parsers.events import Content
from frontend.stop_strings import StopStrings
from frontend.tokenizer import TextTokenizer
from tests.frontend.support import END, train_tokenizer


def byte_level() -> TextTokenizer:
    return TextTokenizer(train_tokenizer(), {"type": "ByteLevel"}, {})


def byte_fallback() -> TextTokenizer:
    """Like a sentencepiece model: a few words, and single bytes for all else."""
    vocab = {"<unk>": 0}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    for token in ["▁", *"abcdehlorw", "▁hello", "▁world", "lo"]:
        vocab[token] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("l", "o")], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    description = {"type": "Sequence", "decoders": [{"type": "Replace"}, {"type": "ByteFallback"}]}
    return TextTokenizer(tokenizer, description, {})


TOKENIZERS = {"byte_level": byte_level(), "byte_fallback": byte_fallback()}
texts = st.text(st.characters(exclude_categories=["Cs", "Co", "Cn"], exclude_characters="�▁"), max_size=40)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=texts)
def test_pieces_join_to_the_text_and_split_no_character(name, text):
    tokenizer = TOKENIZERS[name]
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    assume(tokenizer.special_token_ids.isdisjoint(token_ids))  # those are left out
    prompt = tokenizer.encode("hello", add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer, prompt, skip_special_tokens=True)
    pieces = [detokenizer.step(token_id) for token_id in token_ids]
    pieces.append(detokenizer.flush())
    assert "".join(pieces) == text
    assert not any("�" in piece for piece in pieces)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=texts, cut=st.integers(1, 6))
def test_an_output_that_ends_within_a_character_loses_only_that(name, text, cut):
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text + "🦊", add_special_tokens=False)[:-cut]
    assume(tokenizer.special_token_ids.isdisjoint(ids))  # those are left out
    detokenizer = Detokenizer(tokenizer, [], skip_special_tokens=True)
    out = "".join(detokenizer.step(token_id) for token_id in ids) + detokenizer.flush()
    assert "�" not in out
    assert (text + "🦊").lstrip(" ").startswith(out.lstrip(" "))


@given(ids=st.lists(st.integers(0, 400), max_size=200), prompt=st.lists(st.integers(0, 325), max_size=8))
def test_any_tokens_at_all_end_in_text(ids, prompt):
    """Models with random weights, prompts of random ids: nothing raises, and nothing is held for long."""
    tokenizer = TOKENIZERS["byte_level"]
    detokenizer = Detokenizer(tokenizer, prompt, skip_special_tokens=True)
    for token_id in ids:
        detokenizer.step(token_id)
        assert len(detokenizer._held) <= 64
    detokenizer.flush()


def test_markers_are_text_and_other_special_tokens_are_not():
    tokenizer = TOKENIZERS["byte_level"]
    ids = tokenizer.encode("a<|user|>b<|system|>c", add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer, [], skip_special_tokens=True, markers=frozenset(("<|system|>", "<x>")))
    assert "".join(map(detokenizer.step, ids)) + detokenizer.flush() == "ab<|system|>c"


def test_token_bytes_join_to_the_text():
    for tokenizer in TOKENIZERS.values():
        text = "hello wörld 🦊"
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert b"".join(map(tokenizer.token_bytes, ids)).decode() == text
    assert TOKENIZERS["byte_level"].token_text(TOKENIZERS["byte_level"].encode("ü", False)[0]) == "bytes:\\xc3"


def cut_randomly(text: str, cuts: list[int]) -> list[str]:
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    return [text[start:end] for start, end in itertools.pairwise(places)]


def naive_stop(text: str, stop_strings: list[str], include: bool) -> tuple[str, str | None]:
    """Character by character: the first stop string that is complete, the longest of them."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stop_strings if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return (text[:end] if include else text[: end - len(stop)]), stop
    return text, None


@given(
    text=st.text("abc", max_size=30),
    stop_strings=st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=10),
    include=st.booleans(),
)
def test_stop_strings_do_not_depend_on_the_cuts(text, stop_strings, cuts, include):
    stops = StopStrings(stop_strings, include)
    wanted, wanted_stop = naive_stop(text, stop_strings, include)
    out, num_chars = "", 0
    found = None
    for piece in cut_randomly(text, cuts):
        released, found = stops.feed(Content(piece, num_chars), may_stop=True)
        num_chars += len(piece)
        for part in released:
            assert text[part.start : part.end] == part.text
            out += part.text
        assert wanted.startswith(out), "a part of the stop string got out"
        if found is not None:
            break
    else:
        out += "".join(part.text for part in stops.flush())
    assert (out, found) == (wanted, wanted_stop)


@given(text=st.text("ab", max_size=20), cuts=st.lists(st.integers(0, 20), max_size=6), include=st.booleans())
def test_no_stop_before_it_is_allowed(text, cuts, include):
    stops = StopStrings(["ab", "ba"], include)
    parts = [part for piece in cut_randomly(text, cuts) for part in stops.feed(Content(piece), may_stop=False)[0]]
    assert "".join(part.text for part in [*parts, *stops.flush()]) == text


def finished(reason: str = "length", stop_token_id: int | None = None) -> Finished:
    return Finished(reason, stop_token_id, 1, 3, 1, 0, 0.0, 0.0, 0.0)


@given(
    text=st.text("abü🦊 ", max_size=20),
    stop=st.text("abü", min_size=1, max_size=3),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=20),
    min_tokens=st.integers(0, 8),
)
def test_grouping_of_tokens_changes_nothing(text, stop, sizes, min_tokens):
    """Merged deltas, as a slow reader gets them, give what single ones give."""
    tokenizer = TOKENIZERS["byte_level"]
    ids = tokenizer.encode(text, add_special_tokens=False)
    options = OutputOptions(stop_strings=[stop], min_tokens=min_tokens)

    def run(groups: list[list[int]]) -> tuple[str, str | None, int]:
        processor = OutputProcessor(tokenizer, [1], options)
        out = ""
        for number, group in enumerate(groups):
            last = number == len(groups) - 1
            piece = processor.push(TokenDelta(int32_array(group), None, finished() if last else None))
            out += piece.text
            if piece.finish_reason is not None:
                return out, piece.finish_reason, processor.num_output_tokens
        raise AssertionError("no end")

    groups, rest = [], ids
    for size in sizes:
        groups.append(rest[:size])
        rest = rest[size:]
    groups.append(rest)
    one_by_one = [[token_id] for token_id in ids] or [[]]
    result = run(one_by_one)
    assert run(groups) == result
    assert result[2] >= min(min_tokens, len(ids))


@pytest.mark.parametrize(("include", "wanted"), [(False, "ab"), (True, f"ab{END}")])
def test_the_stop_token_is_text_only_when_asked_for(include, wanted):
    tokenizer = TOKENIZERS["byte_level"]
    end = tokenizer.tokenizer.token_to_id(END)
    processor = OutputProcessor(tokenizer, [1], OutputOptions(include_stop=include, skip_special_tokens=False))
    ids = [*tokenizer.encode("ab", False), end]
    piece = processor.push(TokenDelta(int32_array(ids), None, finished("stop", end), num_cached_tokens=3))
    assert (piece.text, piece.finish_reason, piece.stop_reason) == (wanted, "stop", None)
    assert processor.num_output_tokens == len(ids)
    assert processor.num_cached_tokens == 3


def test_a_named_stop_token_is_the_stop_reason():
    tokenizer = TOKENIZERS["byte_level"]
    processor = OutputProcessor(tokenizer, [1], OutputOptions(stop_token_ids=frozenset([9])))
    piece = processor.push(TokenDelta(int32_array([8, 9]), None, finished("stop", 9)))
    assert piece.stop_reason == 9


def test_after_a_stop_string_nothing_counts():
    tokenizer = TOKENIZERS["byte_level"]
    processor = OutputProcessor(tokenizer, [1], OutputOptions(stop_strings=["b"]))
    ids = tokenizer.encode("abab", add_special_tokens=False)
    piece = processor.push(TokenDelta(int32_array(ids), None, finished()))
    assert (piece.text, piece.finish_reason, piece.stop_reason) == ("a", "stop", "b")
    assert processor.num_output_tokens == len(piece.token_ids) <= len(ids)
    late = processor.push(TokenDelta(int32_array(ids), None, finished()))
    assert (late.text, late.finish_reason) == ("", None)


@pytest.mark.parametrize("stop", ["", [""], ["a"] * 33, "x" * 1025])
def test_a_stop_string_that_nothing_could_stop_at(stop):
    with pytest.raises(ValueError, match="stop must be"):
        SamplingParams(stop=stop)
