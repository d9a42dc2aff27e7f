"""Paged attention over mixed batches and shuffled blocks against plain softmax in float64."""

import pytest
import torch

from kernels import reference
from kernels.cpu.attention import StepAttention
from kernels.cpu.attention_plan import Workspace, group_rows, plan_attention
from kernels.reference_attention import attention_reference


class Pages:
    """A cache with random block tables, and what each row's keys and values are without any paging."""

    def __init__(self, lens: list[int], heads: int, head_dim: int, block_size: int, num_layers: int = 2) -> None:
        num_blocks = sum(-(-n // block_size) for n in lens) + 3
        self.cache = torch.full((num_blocks, num_layers, 2, heads, block_size, head_dim), 1e4)  # foreign rubbish
        free = torch.randperm(num_blocks).tolist()
        widest = max(-(-n // block_size) for n in lens)
        self.tables = torch.zeros(len(lens), widest, dtype=torch.int32)
        for row, n in enumerate(lens):
            for i in range(-(-n // block_size)):
                self.tables[row, i] = free.pop()
        self.block_size = block_size
        self.keys = [torch.randn(num_layers, n, heads, head_dim) for n in lens]
        self.values = [torch.randn(num_layers, n, heads, head_dim) for n in lens]

    def slots(self, row: int, start: int, end: int) -> torch.Tensor:
        positions = torch.arange(start, end)
        return self.tables[row].long()[positions // self.block_size] * self.block_size + positions % self.block_size

    def fill(self, row: int, end: int) -> None:
        """The first `end` tokens of a row as if earlier steps had written them."""
        slots = self.slots(row, 0, end)
        for layer in range(self.cache.shape[1]):
            for kind, source in enumerate((self.keys[row], self.values[row])):
                self.cache[slots // self.block_size, layer, kind, :, slots % self.block_size] = source[layer, :end]


def naive_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """query [n, Hq, D] are the last n of the tokens in key, value [len, H, D]."""
    group = query.shape[1] // key.shape[1]
    key = key.double().repeat_interleave(group, dim=1)
    value = value.double().repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", query.double(), key) * scale
    positions = torch.arange(len(key) - len(query), len(key))
    scores = scores.masked_fill(torch.arange(len(key)) > positions[:, None], -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)


@pytest.mark.parametrize("block_size", [1, 3, 16])
@pytest.mark.parametrize(("heads", "group", "head_dim"), [(1, 1, 8), (2, 3, 16), (3, 2, 10)])
@pytest.mark.parametrize(
    "batch",
    [
        [(1, 1)],
        [(7, 7)],
        [(40, 5)],
        [(1, 1), (17, 1), (33, 1), (2, 1), (90, 1)],
        [(5, 5), (19, 1), (64, 13), (1, 1), (48, 48), (16, 1), (32, 16)],
    ],
    ids=["one", "prompt", "chunk", "decode", "mixed"],
)
def test_mixed_batches(batch: list[tuple[int, int]], heads: int, group: int, head_dim: int, block_size: int) -> None:
    """`batch` holds (seq_len, query_len); the step's own tokens go through rope_write_kv with angles of zero."""
    torch.manual_seed(1)
    pages = Pages([n for n, _ in batch], heads, head_dim, block_size)
    starts = torch.tensor([0, *(q for _, q in batch)]).cumsum(0)
    num_tokens = int(starts[-1])
    queries = torch.randn(num_tokens, heads * group, head_dim)
    slots = []
    for row, (seq_len, query_len) in enumerate(batch):
        pages.fill(row, seq_len - query_len)
        slots.append(pages.slots(row, seq_len - query_len, seq_len))
    lens = torch.tensor([n for n, _ in batch])
    plan = plan_attention(pages.cache, pages.tables, torch.cat(slots), starts, lens)
    attention = StepAttention(pages.cache, plan, Workspace())
    table = torch.cat((torch.ones(1, head_dim // 2), torch.zeros(1, head_dim // 2)), -1)
    rows = reference.gather_rope(table, torch.zeros(num_tokens, dtype=torch.long))
    scale = head_dim**-0.5
    for layer in range(2):
        new = [
            torch.cat([parts[row][layer, n - q :] for row, (n, q) in enumerate(batch)])
            for parts in (pages.keys, pages.values)
        ]
        qkv = torch.cat((queries, *new), dim=1).view(num_tokens, -1)
        query = attention.write(qkv, rows, layer)
        assert torch.equal(query, queries)
        got = attention.attend(query, layer, scale)
        for row, (_, query_len) in enumerate(batch):
            start = int(starts[row])
            wanted = naive_attention(
                queries[start : start + query_len], pages.keys[row][layer], pages.values[row][layer], scale
            )
            torch.testing.assert_close(
                got[start : start + query_len].double().view_as(wanted), wanted, rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("block_size", [3, 16])
@pytest.mark.parametrize("options", ["", "alibi", "sinks", "alibi sinks"])
@pytest.mark.parametrize(("window", "soft_cap"), [(1, 0.0), (9, 0.0), (40, 0.0), (500, 0.0), (0, 1.5), (9, 1.5)])
def test_every_option(window: int, soft_cap: float, options: str, block_size: int) -> None:
    """Against the plain version, which looks at every key; table entries behind the windows name no block."""
    torch.manual_seed(3)
    batch = [(5, 5), (19, 1), (64, 13), (1, 1), (48, 48), (16, 1), (90, 1), (32, 16)]
    heads, group, head_dim = 2, 3, 16
    pages = Pages([n for n, _ in batch], heads, head_dim, block_size)
    for row, (seq_len, _) in enumerate(batch):
        pages.fill(row, seq_len)
    starts = torch.tensor([0, *(q for _, q in batch)]).cumsum(0)
    lens = torch.tensor([n for n, _ in batch])
    query = torch.randn(int(starts[-1]), heads * group, head_dim)
    slopes = torch.rand(heads * group) if "alibi" in options else None
    sinks = torch.randn(heads * group) if "sinks" in options else None
    rows = torch.arange(len(batch))
    wanted = attention_reference(
        query, pages.cache, 1, rows, pages.tables, starts, lens, 0.3, window, soft_cap, slopes, sinks
    )
    if window:
        for row, (seq_len, query_len) in enumerate(batch):
            pages.tables[row, : max(0, seq_len - query_len - window + 1) // block_size] = -(2**30)
    slots = torch.cat([pages.slots(row, n - q, n) for row, (n, q) in enumerate(batch)])
    plan = plan_attention(pages.cache, pages.tables, slots, starts, lens, window)
    got = StepAttention(pages.cache, plan, Workspace()).attend(query, 1, 0.3, soft_cap, slopes, sinks)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-5)


def test_rows_of_similar_length_are_gathered_together() -> None:
    lens = [16 * n for n in (1, 40, 3, 38, 2, 1)]
    groups = group_rows(list(range(6)), lens, block_size=16, cap=100)
    assert groups == [[1, 3], [2, 4], [0, 5]]
    assert group_rows(list(range(6)), lens, block_size=16, cap=1) == [[1], [3], [2], [4], [0], [5]]


def test_qk_norm_comes_before_the_rotation() -> None:
    torch.manual_seed(2)
    heads, head_dim, num_tokens = 2, 8, 5
    cache = torch.zeros(2, 1, 2, heads, 4, head_dim)
    lens, starts = torch.tensor([num_tokens]), torch.tensor([0, num_tokens])
    plan = plan_attention(cache, torch.tensor([[1, 0]]), torch.tensor([4, 5, 6, 7, 0]), starts, lens)
    qkv, q_norm, k_norm = torch.randn(num_tokens, 4 * heads * head_dim), torch.randn(head_dim), torch.randn(head_dim)
    angles = torch.randn(num_tokens, head_dim // 2)
    rows = reference.gather_rope(torch.cat((angles.cos(), angles.sin()), -1), torch.arange(num_tokens))
    query = StepAttention(cache, plan, Workspace()).write(qkv, rows, 0, q_norm, k_norm, 1e-6)
    split = qkv.view(num_tokens, 4 * heads, head_dim)
    wanted = reference.rope(reference.rms_norm(split[:, : 2 * heads], q_norm, 1e-6), rows)
    torch.testing.assert_close(query, wanted)
    wanted = reference.rope(reference.rms_norm(split[:, 2 * heads : 3 * heads], k_norm, 1e-6), rows)
    torch.testing.assert_close(cache[1, 0, 0].transpose(0, 1), wanted[:4])
    torch.testing.assert_close(cache[0, 0, 0, :, 0], wanted[4])
    torch.testing.assert_close(cache[1, 0, 1].transpose(0, 1), split[:4, 3 * heads :])
