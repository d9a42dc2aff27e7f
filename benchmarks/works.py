"""The works that benchmarks measure: named lists of requests, the same prompts for every side of a comparison."""

import random
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

    @property
    def num_input_tokens(self) -> int:
        return sum(len(request.prompt) for request in self.requests)

    @property
    def num_output_tokens(self) -> int:
        return sum(request.num_output_tokens for request in self.requests)


def mixed(vocab_size: int, count: int = 32, shortest: int = 16, longest: int = 256) -> Work:
    """`count` requests with input and output lengths uniform in [shortest, longest]."""
    rng = random.Random(0)
    requests = []
    for _ in range(count):
        prompt = [rng.randrange(vocab_size) for _ in range(rng.randint(shortest, longest))]
        requests.append(Request(prompt, rng.randint(shortest, longest)))
    return Work(f"mixed{count}", requests)


def single(vocab_size: int) -> Work:
    """One request of 128 tokens in, 256 out."""
    rng = random.Random(0)
    return Work("decode1", [Request([rng.randrange(vocab_size) for _ in range(128)], 256)])


WORKS = {"mixed32": mixed, "decode1": single}
