"""A deterministic stand-in for a model, and what a request must answer under it."""

from engine_core.ipc.sampling_params import SamplingParams

EOS = 1
VOCAB = 12


def next_token(tokens: list[int]) -> int:
    """A deterministic 'model': any difference in context shows in the tokens that follow."""
    value = 7
    for token in tokens:
        value = (value * 31 + token + 1) % 10007
    return value % VOCAB


def expected_output(prompt: list[int], sampling: SamplingParams, limit: int) -> list[int]:
    """What the request must end with, computed without any scheduler."""
    output: list[int] = []
    while len(prompt) + len(output) < limit:
        token = next_token(prompt + output)
        may_stop = len(output) >= sampling.min_tokens
        output.append(token)
        if may_stop and ((token == EOS and not sampling.ignore_eos) or token in sampling.stop_token_ids):
            break
    return output
