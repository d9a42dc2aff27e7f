"""What a simulation is driven by: requests with their times and lengths, read, drawn, or those of a named work.

A prompt is told as segments, each with a number for its contents and a length: prompts that begin with the same
segments begin with the same tokens. That is all a prefix cache can see, so no real token ids are needed.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from benchmarks.works import Work

TOKENS_PER_HASH = 512
"""Of the prompt, for each entry of a trace's `hash_ids`; the last entry may stand for fewer."""
_MAX_TOKENS = 2**24

Length = Annotated[int, Meta(ge=1, le=_MAX_TOKENS)]


class TraceError(ValueError):
    """A trace that cannot be used; the message is a sentence that names the line."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request. `arrival` is in seconds after the trace's beginning."""

    arrival: float
    segments: tuple[tuple[int, int], ...]
    """Of the prompt: (number of the contents, tokens)."""
    num_output_tokens: int
    priority: int = 0
    share_key: str | None = None
    origin: str = ""
    """Where it stands, for messages: a line of a file."""

    @property
    def num_input_tokens(self) -> int:
        return sum(length for _, length in self.segments)

    def prompt(self) -> np.ndarray:
        """Token ids (int32) that are equal as far as segments are."""
        tokens = np.concatenate([np.arange(length, dtype=np.int32) for _, length in self.segments])
        start = 0
        for contents, length in self.segments:
            tokens[start] = contents
            start += length
        return tokens


class _Line(msgspec.Struct, kw_only=True):
    """A line of a trace in the form of public ones; unknown fields are ignored."""

    timestamp: Annotated[float, Meta(ge=0, le=1e15)]
    """Milliseconds."""
    input_length: Length
    output_length: Length
    hash_ids: list[int] | None = None
    priority: Annotated[int, Meta(ge=-(2**31), lt=2**31)] = 0
    share_key: Annotated[str, Meta(max_length=64)] | None = None


def read_trace(path: Path) -> list[TraceRequest]:
    """The requests of a JSONL file in order of arrival, times counted from the first. Empty lines are passed over.
    Raises `TraceError`."""
    decoder = msgspec.json.Decoder(_Line)
    numbers = count()
    contents: defaultdict[int, int] = defaultdict(lambda: next(numbers))
    requests = []
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    origin = f"{path}, line {number}"
                    line = _decode(decoder, text, origin)
                    requests.append(_request(line, contents, numbers, origin))
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror}.") from None
    if not requests:
        raise TraceError(f"{path} has no requests.")
    return _from_the_first(requests)


def _decode(decoder: msgspec.json.Decoder[_Line], text: bytes, origin: str) -> _Line:
    try:
        line = decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TraceError(f"{origin}: {error}.") from None
    needed = -(-line.input_length // TOKENS_PER_HASH)
    if line.hash_ids is not None and len(line.hash_ids) != needed:
        raise TraceError(
            f"{origin}: `hash_ids` has {len(line.hash_ids)} entries and {line.input_length} tokens need {needed}, "
            f"one for each {TOKENS_PER_HASH}."
        )
    return line


def _request(line: _Line, contents: defaultdict[int, int], numbers: Iterator[int], origin: str) -> TraceRequest:
    length = line.input_length
    if line.hash_ids is None:
        segments = [(next(numbers), length)]
    else:
        starts = range(0, length, TOKENS_PER_HASH)
        segments = [
            (contents[hash_id], min(TOKENS_PER_HASH, length - start))
            for hash_id, start in zip(line.hash_ids, starts, strict=True)
        ]
    return TraceRequest(
        arrival=line.timestamp / 1e3,
        segments=tuple(segments),
        num_output_tokens=line.output_length,
        priority=line.priority,
        share_key=line.share_key,
        origin=origin,
    )


def _from_the_first(requests: list[TraceRequest]) -> list[TraceRequest]:
    requests.sort(key=lambda request: request.arrival)
    first = requests[0].arrival
    fields: list[dict[str, Any]] = [{name: getattr(each, name) for name in each.__slots__} for each in requests]
    return [TraceRequest(**{**each, "arrival": each["arrival"] - first}) for each in fields]


@dataclass(frozen=True, slots=True)
class LengthRange:
    """Lengths drawn uniformly from `low` to `high`, both included."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> "LengthRange":
        """`128` or `100-1024`. Raises `ValueError`."""
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= low <= high <= _MAX_TOKENS:
            raise ValueError(f"{text!r} is not a length like 128, or a range like 100-1024")
        return cls(low, high)


@dataclass(frozen=True, slots=True)
class PoissonTrace:
    """Requests that come independently of each other, `rate` in a second on average (infinite: all at once)."""

    num_requests: int
    rate: float
    num_input: LengthRange
    num_output: LengthRange
    num_prefixes: int = 0
    """System prompts, each as likely; 0: all prompts differ."""
    prefix_length: int = 0
    """Of a system prompt; it comes before the drawn input."""
    num_clients: int = 1
    """Client k sends 1/k as much as the first one; each has its own share under `--scheduling-policy fair`."""
    num_priorities: int = 1

    def make(self, seed: int) -> list[TraceRequest]:
        """The same requests for the same seed."""
        rng = random.Random(seed)
        clients = range(1, self.num_clients + 1)
        now, requests = 0.0, []
        for number in range(self.num_requests):
            own = (self.num_prefixes + number, rng.randint(self.num_input.low, self.num_input.high))
            shared = [(rng.randrange(self.num_prefixes), self.prefix_length)] if self.num_prefixes else []
            client = rng.choices(clients, [1 / client for client in clients])[0]
            requests.append(
                TraceRequest(
                    arrival=now,
                    segments=(*shared, own),
                    num_output_tokens=rng.randint(self.num_output.low, self.num_output.high),
                    priority=rng.randrange(self.num_priorities),
                    share_key=str(client) if self.num_clients > 1 else None,
                    origin=f"request {number + 1}",
                )
            )
            now += rng.expovariate(self.rate)
        return requests


def work_trace(work: Work) -> list[TraceRequest]:
    """A named work's requests, all there at the beginning."""
    requests = []
    for number, request in enumerate(work.requests, 1):
        shared = [(0, work.num_shared_tokens)] if work.num_shared_tokens else []
        own = (number, len(request.prompt) - work.num_shared_tokens)
        requests.append(
            TraceRequest(0.0, (*shared, own), request.num_output_tokens, origin=f"request {number} of {work.name}")
        )
    return requests
