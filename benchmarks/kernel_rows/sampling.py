"""Rows of the sampler's kernels on float32 logits of Llama-3.1-8B's vocabulary, compared with the read bandwidth: one
pass over the logits is the least that any of them needs."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from benchmarks.kernel_rows.case import Bench, Case, assert_near
from engine_core.ipc.row_fields import DEFAULT_ROW, NUM_ROW_FIELDS, ROW_FIELD_INDEX
from kernels import reference_sampling
from kernels.reference_random import row_keys
from kernels.step_tensors import RowTensors, SampledRows

SPREAD = 4.0
"""Standard deviation of the logits: random weights give flatter ones, trained models about as much."""


def records(num_rows: int, **values: float) -> np.ndarray:
    """One record a row, greedy and without penalties or biases; `values` are the same in all, seeds are not."""
    made = np.full(num_rows, DEFAULT_ROW)
    made["row"] = np.arange(num_rows)
    made["temperature"] = 0.0
    made["seed_low"] = np.arange(num_rows) + 11
    for name, value in values.items():
        made[name] = value
    return made


class Logits:
    """Logits of a step in several sets, its rows and their records."""

    def __init__(self, bench: Bench, num_rows: int, **values: float) -> None:
        self.bench = bench
        self.vocab_size = bench.pick(128256, 300)
        self.num_bytes = num_rows * self.vocab_size * 4
        self.records = records(num_rows, **values)
        self.sets = [
            bench.randn(num_rows, self.vocab_size, dtype=torch.float32) * SPREAD
            for _ in range(bench.num_sets(self.num_bytes))
        ]
        self.positions = np.arange(num_rows) + 100

        def integers(array: np.ndarray) -> torch.Tensor:
            return torch.tensor(array.astype(np.int32), device=bench.device)

        fields = torch.tensor(self.records.view(np.int32).reshape(num_rows, NUM_ROW_FIELDS), device=bench.device)
        rows, samples = integers(np.arange(num_rows)), integers(np.ones(num_rows))
        self.step = SampledRows(rows, samples, integers(self.positions), fields, ROW_FIELD_INDEX)

    def rows(self, **tensors: torch.Tensor) -> RowTensors:
        """Those that an operation looks at; the others are empty."""
        return RowTensors(**{**dict.fromkeys(RowTensors.__slots__, torch.zeros(0)), **tensors})

    def scaled(self) -> torch.Tensor:
        """Of the last set, on the CPU, as the references take them: (logit - row maximum) / temperature."""
        logits = self.sets[-1].cpu()
        temperature = torch.tensor(self.records["temperature"])[:, None]
        return (logits - logits.amax(-1, keepdim=True)) / temperature

    def thresholds(self) -> torch.Tensor:
        """[N, 1], from the reference."""
        top_k, top_p, min_p = (torch.tensor(self.records[name]) for name in ("top_k", "top_p", "min_p"))
        return reference_sampling.filter_thresholds(self.scaled(), top_k, top_p, min_p)


def greedy(bench: Bench) -> Iterator[Case]:
    yield from _sample(bench, filtered=False, drawn=False)


def drawn(bench: Bench) -> Iterator[Case]:
    yield from _sample(bench, filtered=False, drawn=True, temperature=0.6)


def filtered(bench: Bench) -> Iterator[Case]:
    yield from _sample(bench, filtered=True, drawn=True, temperature=0.6, top_k=50, top_p=0.9)


def _sample(bench: Bench, filtered: bool, drawn: bool, **values: float) -> Iterator[Case]:
    from kernels.sample import TokenSampler

    for num_rows in bench.pick((1, 64, 256), (3,)):
        logits = Logits(bench, num_rows, **values)
        last_token, sampled, num_sampled = (bench.poisoned(num_rows, dtype=torch.int32) for _ in range(3))
        no_counts = torch.zeros(0, logits.vocab_size, dtype=torch.int32, device=bench.device)
        samplers = [TokenSampler(one, logits.step, last_token, no_counts) for one in logits.sets]

        outs = last_token, sampled, num_sampled

        def run(sampler: TokenSampler, num_rows: int = num_rows, outs: tuple = outs[1:]) -> None:
            sampler.sample(num_rows, *outs, any_drawn=drawn, any_filtered=filtered)

        def check(
            logits: Logits = logits, run: Callable = run, last: TokenSampler = samplers[-1], outs: tuple = outs
        ) -> None:
            for tensor in outs:
                tensor.fill_(-1)
            run(last)
            last_token, sampled, num_sampled = (tensor.cpu() for tensor in outs)
            assert (num_sampled == 1).all()
            assert (last_token == sampled).all()
            _check_tokens(logits, sampled.long(), drawn)

        calls = [lambda sampler=sampler, run=run: run(sampler) for sampler in samplers]
        yield Case(f"{num_rows} x {logits.vocab_size}", calls, check, logits.num_bytes, "read")


def _check_tokens(logits: Logits, sampled: torch.Tensor, drawn: bool) -> None:
    """The reference's tokens. A device may round a logarithm otherwise, and the runner-up wins where the scores lie
    that near to each other: in far fewer than one row of a hundred."""
    if not drawn:
        assert (sampled == logits.sets[-1].cpu().argmax(-1)).all()
        return
    made = logits.records
    keys = row_keys(made["seed_low"], made["seed_high"], made["sample_index"], logits.positions)
    expected = reference_sampling.sample_gumbel(logits.scaled(), logits.thresholds(), keys)
    assert (sampled != expected).sum() <= len(sampled) // 100


def filter_thresholds(bench: Bench) -> Iterator[Case]:
    from kernels.block_bounds import BlockBounds
    from kernels.filter_thresholds import FilterThresholds

    for num_rows in bench.pick((1, 64, 256), (3,)):
        logits = Logits(bench, num_rows, temperature=0.6, top_k=50, top_p=0.9)
        thresholds = bench.poisoned(num_rows, dtype=torch.float32)
        bounds = BlockBounds(logits.sets[-1], logits.step, thresholds)
        bounds.find_maxima(num_rows)
        filters = FilterThresholds(logits.sets[-1], logits.step, bounds.maxima, thresholds)

        def run(num_rows: int = num_rows, filters: FilterThresholds = filters) -> None:
            filters.find(num_rows)

        def check(logits: Logits = logits, run: Callable = run, found: torch.Tensor = thresholds) -> None:
            found.fill_(torch.nan)
            run()
            thresholds = found.cpu()[:, None]
            scaled = logits.scaled()
            kept, wanted = (scaled >= thresholds).sum(-1), (scaled >= logits.thresholds()).sum(-1)
            assert (kept - wanted).abs().max() <= 1  # the mass at the boundary is rounded otherwise

        # Of the last set only, whose maxima are there.
        yield Case(f"{num_rows} x {logits.vocab_size}", [run], check, logits.num_bytes, "read")


def penalties(bench: Bench) -> Iterator[Case]:
    """In place, over and over: a logit read and written, its count and its bit of the prompt read."""
    from kernels.logits_processors import apply_penalties

    num_rows = bench.pick(64, 3)
    logits = Logits(bench, num_rows, repetition_penalty=1.1, presence_penalty=0.5, frequency_penalty=0.2)
    logits.step.fields[:, ROW_FIELD_INDEX["penalty_slot"]] = logits.step.rows
    shape = num_rows, logits.vocab_size
    prompt_mask = torch.randint(2, shape, dtype=torch.uint8, device=bench.device)
    output_counts = torch.randint(3, shape, dtype=torch.int32, device=bench.device)
    rows = logits.rows(prompt_mask=prompt_mask, output_counts=output_counts)

    def check() -> None:
        expected = logits.sets[-1].clone()
        strengths = (
            torch.tensor(logits.records[f"{name}_penalty"], device=bench.device)
            for name in ("repetition", "presence", "frequency")
        )
        reference_sampling.apply_penalties(expected, prompt_mask.bool(), output_counts, *strengths)
        apply_penalties(logits.sets[-1], logits.step, rows)
        assert_near(logits.sets[-1], expected, torch.float32)

    calls = [lambda one=one: apply_penalties(one, logits.step, rows) for one in logits.sets]
    yield Case(f"{num_rows} x {logits.vocab_size}", calls, check, logits.num_bytes / 4 * (8 + 4 + 1), "copy")


def keep_allowed(bench: Bench) -> Iterator[Case]:
    """In place, over and over: all logits of a row written but for those of its list."""
    from kernels.logits_masks import keep_allowed

    num_rows, num_allowed = bench.pick((64, 1024), (3, 20))
    logits = Logits(bench, num_rows, allowed_length=num_allowed)
    chosen = [torch.randperm(logits.vocab_size)[:num_allowed] for _ in range(num_rows)]
    allowed = torch.stack(chosen).to(torch.int32).to(bench.device)
    rows = logits.rows(allowed_ids=allowed)

    def check() -> None:
        before = logits.sets[-1].clone()
        keep_allowed(logits.sets[-1], logits.step, rows)
        kept = logits.sets[-1].gather(1, allowed.long())
        assert (kept == before.gather(1, allowed.long())).all()
        assert int((logits.sets[-1] > -1e30).sum()) == num_rows * num_allowed

    calls = [lambda one=one: keep_allowed(one, logits.step, rows) for one in logits.sets]
    yield Case(f"{num_rows} x {logits.vocab_size}, {num_allowed}", calls, check, logits.num_bytes, "copy")


def follow_sequences(bench: Bench) -> Iterator[Case]:
    """128 bad words in each row, of which one is complete but for its last token. Bound by the launch."""
    from kernels.logits_masks import follow_sequences

    num_rows, num_sequences, length = bench.pick(64, 3), bench.pick(130, 5), 16
    logits = Logits(bench, num_rows, num_sequences=num_sequences, thinking_budget=-1, num_output_tokens=50)

    def integers(*shape: int, value: int = 0) -> torch.Tensor:
        return torch.full(shape, value, dtype=torch.int32, device=bench.device)

    sequences = integers(num_rows, num_sequences, length, value=-1)
    sequences[:, 2:, 0], sequences[:, 2:, 1] = 7, 9  # complete behind 9
    sequences[:, 2:-1, 1] = 8
    rows = logits.rows(
        sequences=sequences,
        latest_tokens=integers(num_rows, length),
        thinking_begin=integers(num_rows),
        last_token=integers(num_rows, value=9),
    )

    def check() -> None:
        before = logits.sets[-1].clone()
        follow_sequences(logits.sets[-1], logits.step, rows)
        assert (logits.sets[-1][:, 7] < -1e30).all()
        before[:, 7] = logits.sets[-1][:, 7]
        assert torch.equal(before, logits.sets[-1])

    calls = [lambda one=one: follow_sequences(one, logits.step, rows) for one in logits.sets]
    yield Case(f"{num_rows} x {num_sequences - 2} words", calls, check, sequences.numel() * 4, "read")


def top_n_sigma(bench: Bench) -> Iterator[Case]:
    """In place, over and over: nearly all of a row's logits are ruled out, once; all are read twice."""
    from kernels.top_n_sigma import keep_top_n_sigma

    num_rows = bench.pick(64, 3)
    logits = Logits(bench, num_rows, temperature=1.0, top_n_sigma=1.0)
    rows = logits.rows()

    def check() -> None:
        expected = logits.sets[-1].cpu()
        reference_sampling.keep_top_n_sigma(expected, torch.ones(num_rows))
        keep_top_n_sigma(logits.sets[-1], logits.step, rows)
        expected.clamp_(min=torch.finfo(torch.float32).min)
        assert_near(logits.sets[-1].cpu(), expected, torch.float32)

    calls = [lambda one=one: keep_top_n_sigma(one, logits.step, rows) for one in logits.sets]
    yield Case(f"{num_rows} x {logits.vocab_size}", calls, check, 2 * logits.num_bytes, "read")


def token_masks(bench: Bench) -> Iterator[Case]:
    """In place: masks that leave little, as within JSON; each logit that is ruled out is written, none is read."""
    from kernels.token_masks import apply_token_masks

    num_rows = bench.pick(64, 3)
    logits = Logits(bench, num_rows)
    num_words = -(-logits.vocab_size // 32)
    masks = torch.zeros(num_rows, num_words, dtype=torch.int32, device=bench.device)
    masks[:, ::7] = 0x11
    rows = torch.arange(num_rows, dtype=torch.int32, device=bench.device)

    def check() -> None:
        expected = logits.sets[-1].cpu()
        reference_sampling.apply_token_masks(expected, rows.cpu().long(), masks.cpu())
        apply_token_masks(logits.sets[-1], rows, masks)
        expected.clamp_(min=torch.finfo(torch.float32).min)
        assert_near(logits.sets[-1].cpu(), expected, torch.float32)

    calls = [lambda one=one: apply_token_masks(one, rows, masks) for one in logits.sets]
    num_bytes = logits.num_bytes + num_rows * num_words * 4
    yield Case(f"{num_rows} x {logits.vocab_size}", calls, check, num_bytes, "copy")


def token_logprobs(bench: Bench) -> Iterator[Case]:
    from kernels.token_logprobs import token_logprobs

    num_rows, num_top = bench.pick((64, 20), (3, 5))
    logits = Logits(bench, num_rows)
    token_ids = torch.randint(logits.vocab_size, (num_rows,), dtype=torch.int32, device=bench.device)

    def check() -> None:
        logprobs, ranks, top_ids, top_logprobs = token_logprobs(logits.sets[-1], token_ids, num_top)
        wanted = reference_sampling.token_logprobs(logits.sets[-1], token_ids.long(), num_top)
        assert_near(logprobs, wanted[0], torch.float32, summands=SPREAD)  # differences of logits
        assert_near(top_logprobs, wanted[3], torch.float32, summands=SPREAD)
        assert (ranks == wanted[1]).all()
        assert (top_ids == wanted[2]).all()

    calls = [lambda one=one: token_logprobs(one, token_ids, num_top) for one in logits.sets]
    yield Case(f"{num_rows} x {logits.vocab_size}, top {num_top}", calls, check, logits.num_bytes, "read")
