"""The works that benchmarks measure: named lists of requests, the same prompts for every side of a comparison.

Lengths are part of a work's name and never change. Token ids are drawn anew for each `repeat`, so that a repeat finds
nothing of an earlier one in a prefix cache: what it finds is what the work itself shares. `scale` divides counts and
lengths, for trials.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """One request: its prompt's token ids and how many tokens it must generate (EOS is ignored)."""

    prompt: list[int]
    num_output_tokens: int


@dataclass(frozen=True)
class Work:
    """Requests that are all there at the beginning, sampled at `temperature`."""

    name: str
    requests: list[Request]
    temperature: float = 0.0
    num_shared_tokens: int = 0
    """Tokens that all prompts of a group begin with."""
    num_groups: int = 1
    """Prompts belong to them in turn: the first of each group is among the first `num_groups`."""

    @property
    def num_shareable_tokens(self) -> int:
        """What needs no computing once it was computed for the first of each group."""
        return self.num_shared_tokens * (len(self.requests) - self.num_groups)

    @property
    def num_input_tokens(self) -> int:
        return sum(len(request.prompt) for request in self.requests)

    @property
    def num_output_tokens(self) -> int:
        return sum(request.num_output_tokens for request in self.requests)


@dataclass(frozen=True)
class _Uniform:
    """`count` requests of equal lengths, whose first `num_shared` tokens are the same within each of `num_groups`,
    decoded greedily."""

    count: int
    num_in: int
    num_out: int
    num_shared: int = 0
    num_groups: int = 1

    def __call__(self, name: str, ids: Iterator[int], scale: int) -> Work:
        num_shared = _scaled(self.num_shared, scale) if self.num_shared else 0
        num_own = _scaled(self.num_in - self.num_shared, scale)
        num_groups = _scaled(self.num_groups, scale)
        shared = [_take(ids, num_shared) for _ in range(num_groups)]
        requests = [
            Request(shared[index % num_groups] + _take(ids, num_own), _scaled(self.num_out, scale))
            for index in range(_scaled(self.count, scale))
        ]
        return Work(name, requests, num_shared_tokens=num_shared, num_groups=num_groups)


def _nano(name: str, ids: Iterator[int], scale: int) -> Work:
    """nano-vllm's bench.py: 256 requests, lengths uniform in 100-1024 after `random.seed(0)`, temperature 0.6. It draws
    ids between the lengths, so as many are drawn here, whatever ids are then used."""
    rng = random.Random(0)
    num_in = []
    for _ in range(256):
        num_in.append(rng.randint(100, 1024))
        _skip_ids(rng, num_in[-1], 10001)
    lengths = [(length, rng.randint(100, 1024)) for length in num_in]
    return Work(name, _requests(lengths, ids, scale), temperature=0.6)


def _mixed(name: str, ids: Iterator[int], scale: int) -> Work:
    """32 requests with input and output lengths uniform in 16-256, as they come out between ids below 8192."""
    rng = random.Random(0)
    lengths = []
    for _ in range(32):
        num_in = rng.randint(16, 256)
        _skip_ids(rng, num_in, 8192)
        lengths.append((num_in, rng.randint(16, 256)))
    return Work(name, _requests(lengths, ids, scale))


def _skip_ids(rng: random.Random, count: int, vocab_size: int) -> None:
    for _ in range(count):
        rng.randrange(vocab_size)


def _requests(lengths: list[tuple[int, int]], ids: Iterator[int], scale: int) -> list[Request]:
    return [
        Request(_take(ids, _scaled(num_in, scale)), _scaled(num_out, scale))
        for num_in, num_out in lengths[: _scaled(len(lengths), scale)]
    ]


def _take(ids: Iterator[int], count: int) -> list[int]:
    return [next(ids) for _ in range(count)]


def _scaled(number: int, scale: int) -> int:
    return max(1, number // scale)


WORKS: dict[str, Callable[[str, Iterator[int], int], Work]] = {
    "decode1": _Uniform(1, 128, 256),
    "decode64": _Uniform(64, 512, 256),
    "prefill": _Uniform(32, 4096, 1),
    "prefix": _Uniform(512, 2112, 32, num_shared=2048),
    "assistants": _Uniform(1024, 2176, 256, num_shared=2048, num_groups=64),
    "tput": _Uniform(1000, 1024, 128),
    "nano": _nano,
    "mixed32": _mixed,
}
WARM_UP = -1
"""The repeat that is not measured."""


def make_work(name: str, vocab_size: int, repeat: int = 0, scale: int = 1) -> Work:
    """The work's requests for one repeat. The same arguments give the same ids, in every process."""
    rng = random.Random(f"{name} {repeat}")
    return WORKS[name](name, iter(lambda: rng.randrange(vocab_size), -1), scale)
