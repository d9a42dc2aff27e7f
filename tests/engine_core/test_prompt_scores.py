"""Log-probabilities of prompts, and lists of token ids, between clients and a core with a worker that has no model."""

import itertools

from engine_core.ipc.codec import encode
from engine_core.ipc.sampling_params import SamplingParams
from tests.engine_core.core_harness import Harness, Reader, add


def test_log_probabilities_of_prompts(harness: Harness) -> None:
    """One for each token but the first, once, also where the cache has the prompt; others get none."""
    client = harness.client()
    prompt = [7 * i % 50 + 10 for i in range(40)]
    wanted = SamplingParams(max_tokens=3, prompt_logprobs=0)
    for handle, (tokens, sampling) in enumerate(
        [(prompt, wanted), (prompt, SamplingParams(max_tokens=3)), (prompt[:1], wanted), (prompt, wanted)]
    ):
        client.send(encode(add(handle, tokens, sampling=sampling)))
    reader = Reader(client)
    reader.read_finals(4)
    pairs = list(itertools.pairwise(prompt))
    assert reader.prompt_scores == {0: pairs, 3: pairs}
    assert reader.finished[1].num_cached_tokens > 0
    assert [reader.finished[handle].num_cached_tokens for handle in (0, 2, 3)] == [0, 0, 0]


def test_prompts_that_are_only_scored(harness: Harness) -> None:
    """Nothing is sampled; the request ends with the last score, or at once where there is none to be had."""
    client = harness.client()
    longest = harness.config.longest_request()
    prompts = [[7 * i % 50 + 10 for i in range(length)] for length in (40, 2, 1, longest)]
    for handle, prompt in enumerate(prompts):
        client.send(encode(add(handle, prompt, sampling=SamplingParams(max_tokens=0, prompt_logprobs=0))))
    client.send(encode(add(9, prompts[0])))
    reader = Reader(client)
    reader.read_finals(5)
    for handle, prompt in enumerate(prompts):
        assert reader.prompt_scores.get(handle, []) == list(itertools.pairwise(prompt))
        assert (reader.finished[handle].reason, reader.finished[handle].num_output_tokens) == ("length", 0)
    assert list(reader.tokens) == [9]
    assert harness.core.scheduler.kv.pool.num_owned == 0


def test_token_ids_must_be_in_the_vocabulary(harness: Harness) -> None:
    client, beyond = harness.client(), harness.config.model.vocab_size
    fields = [
        {"allowed_token_ids": [1, beyond]},
        {"bad_words_token_ids": [[1], [2, beyond]]},
        {"thinking_token_budget": 1, "thinking_end_token_ids": [beyond]},
    ]
    for handle, each in enumerate(fields):
        client.send(encode(add(handle, sampling=SamplingParams(**each))))
    reader = Reader(client)
    reader.read_finals(3)
    assert [reader.errors[handle].message.split(":")[0] for handle in range(3)] == [list(each)[-1] for each in fields]
