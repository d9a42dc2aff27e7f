"""Plain PyTorch versions of the operations of a model's layers: the oracle of the Triton kernels and the CPU path.

They know nothing of requests, models or configurations: tensors in, tensors out. Their neighbours: `reference_linear`,
`reference_inputs` (the rows), `reference_sampling` and `reference_random`.

Legend: T = tokens of the step, H = KV heads, G = query heads per KV head, D = head_dim, B = block_size, L = layers.

The KV cache is one tensor [num_blocks, L, 2, H, B, D]: block-major (all layers of a block lie together, so that a block
moves to host memory as one piece), and within a layer head-major: a head's B x D tile is contiguous, which is the row
that one `index_select` gathers here and the tile that a GPU kernel loads.
"""

import math
import mmap
from dataclasses import dataclass

import torch
import torch.nn.functional as F

GATHER_BYTES = 4 * 2**20
"""Decode rows are gathered in groups of about this size: they stay in the processor's cache until they are used."""
_MIN_FILL = 0.5
"""A group's shortest row has at least this share of its longest one's blocks; the rest would be padding."""


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dimension; the weight may be float32 whatever x is."""
    if x.dtype != torch.float32:
        if weight.dtype != x.dtype:
            return F.rms_norm(x.float(), (x.shape[-1],), weight, eps).to(x.dtype)
        return F.rms_norm(x, (x.shape[-1],), weight, eps)
    # torch's own takes ten times as long from some thousand rows on: it writes the squares to fresh memory.
    mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    normed: torch.Tensor = x * mean_square.add_(eps).rsqrt_()
    return normed.mul_(weight)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rms_norm(residual + x), residual + x); the sum takes the residual's place."""
    residual.add_(x)
    return rms_norm(residual, weight, eps), residual


def gather_add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, indices: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """rms_norm(residual + x) of the rows `indices` [N] of x and residual [T, hidden_size], which stay as they are:
    after the last layer only the tokens whose logits are wanted matter."""
    return add_rms_norm(x[indices], residual[indices], weight, eps)[0]


def act_and_mul(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """act(gate) · up, where the last dimension holds gate, then up. `activation` is "silu", "gelu" (by erf) or
    "gelu_tanh"."""
    gate, up = gate_up.chunk(2, dim=-1)
    if activation == "silu":
        return F.silu(gate).mul_(up)
    return F.gelu(gate, approximate={"gelu": "none", "gelu_tanh": "tanh"}[activation]).mul_(up)


def embed(weight: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
    """The rows of `weight` [vocab_size, hidden_size] that `input_ids` [T] name."""
    return F.embedding(input_ids, weight)


def make_rope_table(table: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The float32 table [max_positions, D] as `gather_rope` wants it: in the dtype that `rope` computes in."""
    return table.to(dtype)


def gather_rope(cos_sin: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of `cos_sin` [max_positions, D] (D/2 cosines, D/2 sines) that `positions` [T] name; once per step."""
    half = cos_sin.shape[-1] // 2
    rows = cos_sin.index_select(0, positions)[:, None]  # [T, 1, D]
    return rows[..., :half], rows[..., half:]


def rope(x: torch.Tensor, rope_rows: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """(x1·cos - x2·sin, x2·cos + x1·sin) for the halves x1, x2 of each head of x [T, heads, D] (GPT-NeoX's order)."""
    cos, sin = rope_rows
    halves = x.view(*x.shape[:-1], 2, -1)  # [T, heads, 2, D/2]
    out = halves * cos[:, :, None]
    out[:, :, 0].addcmul_(halves[:, :, 1], sin, value=-1)
    out[:, :, 1].addcmul_(halves[:, :, 0], sin)
    return out.view(x.shape)


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Scheduled rows with one query token each, whose KV is gathered together and padded to the longest."""

    gather_rows: torch.Tensor  # [L, 2 * n * H * num_blocks], into the cache as [num_blocks * L * 2 * H, B * D]
    bias: torch.Tensor  # [n * H, 1, num_blocks * B]: 0, and -inf beyond the row's length and behind its window
    num_rows: int


@dataclass(frozen=True, slots=True)
class PrefillSeq:
    """One scheduled row with several query tokens."""

    start: int
    end: int
    num_keys: int
    """Of the blocks that are gathered: all tokens, or those from the first block that the window reaches."""
    gather_rows: torch.Tensor  # [L, 2 * H * num_blocks]
    mask: torch.Tensor | None  # [query_len, num_keys] of 0 and -inf; None: purely causal, nothing before the chunk


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """What attention needs in every layer of one step, worked out once: the CPU's counterpart of a GPU's task map."""

    write_rows: torch.Tensor  # [L, 2, T * H], into the cache as [num_blocks * L * 2 * H * B, D]
    decode_tokens: torch.Tensor  # tokens of all decode rows, one group after the other
    decode: list[DecodeGroup]
    prefill: list[PrefillSeq]


def plan_attention(
    kv_cache: torch.Tensor,
    block_tables: torch.Tensor,
    slot_mapping: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens: torch.Tensor,
    sliding_window: int = 0,
) -> AttentionPlan:
    """Plans a step over rows with `block_tables` [num_seqs, max_blocks], `query_start_loc` [num_seqs + 1] and
    `seq_lens` [num_seqs], this step's tokens included. Token t is written to slot_mapping[t] = block * B + offset. A
    query sees `sliding_window` tokens, itself included (0: all); table entries of blocks that nobody sees are not
    looked at."""
    num_layers, _, num_heads, block_size, head_dim = kv_cache.shape[1:]
    layers = torch.arange(num_layers)[:, None, None]  # [L, 1, 1]
    starts, lens = query_start_loc.tolist(), seq_lens.tolist()
    firsts = [0] * len(lens)  # the block with the first token that any of the row's queries sees
    if sliding_window:
        firsts = [
            max(0, seq_len - (starts[i + 1] - starts[i]) - sliding_window + 1) // block_size
            for i, seq_len in enumerate(lens)
        ]
    lens = [seq_len - first * block_size for seq_len, first in zip(lens, firsts, strict=True)]  # from there on
    cap = max(1, GATHER_BYTES // (2 * num_heads * block_size * head_dim * kv_cache.element_size()))
    groups = _group_rows([i for i in range(len(lens)) if starts[i + 1] - starts[i] == 1], lens, block_size, cap)
    decode_tokens = torch.tensor([starts[i] for group in groups for i in group], dtype=torch.long)
    decode = [_plan_group(group, lens, firsts, block_tables, kv_cache, sliding_window) for group in groups]
    prefill = []
    for i, num_keys in enumerate(lens):
        start, end = starts[i], starts[i + 1]
        if end - start > 1:
            blocks = block_tables[i : i + 1, firsts[i] : firsts[i] - (-num_keys // block_size)].long()
            mask = None
            if end - start < num_keys or 0 < sliding_window < num_keys:
                positions = torch.arange(num_keys - (end - start), num_keys)
                mask = _causal_bias(positions, num_keys, kv_cache.dtype, sliding_window)
            prefill.append(PrefillSeq(start, end, num_keys, _gather_rows(blocks, num_layers, num_heads), mask))

    block, offset = slot_mapping // block_size, slot_mapping % block_size
    heads = torch.arange(num_heads) * block_size
    first = (block * (num_layers * 2 * num_heads * block_size) + offset)[:, None] + heads  # [T, H]
    key_or_value = torch.arange(2)[None, :, None]
    write_rows = first.flatten() + (layers * 2 + key_or_value) * (num_heads * block_size)
    return AttentionPlan(write_rows, decode_tokens, decode, prefill)


def _group_rows(rows: list[int], lens: list[int], block_size: int, cap: int) -> list[list[int]]:
    """Rows of similar length together, at most `cap` gathered blocks (padding included) in a group."""
    groups: list[list[int]] = []
    longest = 0
    for i in sorted(rows, key=lambda i: -lens[i]):
        blocks = -(-lens[i] // block_size)
        if groups and (len(groups[-1]) + 1) * longest <= cap and blocks >= _MIN_FILL * longest:
            groups[-1].append(i)
        else:
            groups.append([i])
            longest = blocks
    return groups


def _plan_group(
    group: list[int],
    lens: list[int],
    firsts: list[int],
    block_tables: torch.Tensor,
    kv_cache: torch.Tensor,
    sliding_window: int,
) -> DecodeGroup:
    """`lens` counts from the beginning of the block number `firsts` of each row."""
    num_layers, _, num_heads, block_size, _ = kv_cache.shape[1:]
    group_lens = torch.tensor([lens[i] for i in group])[:, None]
    first = torch.tensor([firsts[i] for i in group])[:, None]
    num_blocks = -(-lens[group[0]] // block_size)
    # Padding repeats the row's last block: what another request keeps in its blocks is never read for this one.
    columns = first + torch.arange(num_blocks).minimum((group_lens - 1) // block_size)
    blocks = block_tables[torch.tensor(group)].long().gather(1, columns)  # [n, num_blocks]
    keys = torch.arange(num_blocks * block_size)
    hidden = keys >= group_lens
    if sliding_window:
        hidden |= keys < group_lens - sliding_window
    bias = torch.zeros(len(group), num_blocks * block_size, dtype=kv_cache.dtype)
    bias.masked_fill_(hidden, -torch.inf)
    return DecodeGroup(
        gather_rows=_gather_rows(blocks, num_layers, num_heads),
        bias=bias.repeat_interleave(num_heads, dim=0)[:, None],
        num_rows=len(group),
    )


def _gather_rows(blocks: torch.Tensor, num_layers: int, num_heads: int) -> torch.Tensor:
    """Rows of the cache as [num_blocks * L * 2 * H, B * D] that hold keys, then values of `blocks` [n, b], in the order
    [2, n, H, b], for each layer: [L, 2 * n * H * b]."""
    per_layer = 2 * num_heads
    first = blocks[None, :, None, :] * (num_layers * per_layer) + torch.arange(per_layer).view(2, 1, num_heads, 1)
    return first.flatten() + torch.arange(num_layers)[:, None] * per_layer


def _causal_bias(positions: torch.Tensor, num_keys: int, dtype: torch.dtype, sliding_window: int) -> torch.Tensor:
    """[query_len, num_keys]: 0 up to each query's own position and from its window's first on, else -inf."""
    keys, own = torch.arange(num_keys), positions[:, None]
    hidden = keys > own
    if sliding_window:
        hidden |= keys <= own - sliding_window
    return torch.zeros(len(positions), num_keys, dtype=dtype).masked_fill_(hidden, -torch.inf)


def rope_write_kv(
    qkv: torch.Tensor,
    rope_rows: tuple[torch.Tensor, torch.Tensor],
    kv_cache: torch.Tensor,
    layer: int,
    plan: AttentionPlan,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    """Normalizes (optional) and rotates queries and keys of `qkv` [T, (H·G + 2·H)·D], writes keys and values into the
    cache and returns the queries [T, H·G, D]."""
    num_heads, _, head_dim = kv_cache.shape[-3:]
    heads = qkv.view(len(qkv), -1, head_dim)  # [T, H·G + 2·H, D]
    num_q_heads = heads.shape[1] - 2 * num_heads
    qk, value = heads[:, :-num_heads], heads[:, -num_heads:]
    if q_norm is not None and k_norm is not None:
        query, key = rms_norm(qk[:, :num_q_heads], q_norm, eps), rms_norm(qk[:, num_q_heads:], k_norm, eps)
        qk = torch.cat((query, key), dim=1)
    qk = rope(qk, rope_rows)
    cache_rows = kv_cache.view(-1, head_dim)
    cache_rows.index_copy_(0, plan.write_rows[layer, 0], qk[:, num_q_heads:].reshape(-1, head_dim))
    cache_rows.index_copy_(0, plan.write_rows[layer, 1], value.reshape(-1, head_dim))
    return qk[:, :num_q_heads]


def make_kv_cache(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A cache of zeros in anonymous memory: a page is taken from the machine when a request first writes to it, whereas
    `torch.zeros` writes to all of them."""
    num_bytes = math.prod(shape) * dtype.itemsize
    return torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=dtype).view(shape)


class Workspace:
    """Memory for gathered KV that lives on: fresh memory of this size costs more in page faults than the gather."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def take(self, num_rows: int, row_size: int, dtype: torch.dtype) -> torch.Tensor:
        """[num_rows, row_size], undefined content, valid until the next call."""
        size = num_rows * row_size
        if self._buffer.numel() < size or self._buffer.dtype != dtype:
            self._buffer = torch.empty(size, dtype=dtype)
        return self._buffer[:size].view(num_rows, row_size)


def make_workspace() -> Workspace:
    """Scratch memory for `paged_attention`, one per worker."""
    return Workspace()


def paged_attention(
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: int,
    plan: AttentionPlan,
    scale: float,
    workspace: Workspace,
    soft_cap: float = 0.0,
) -> torch.Tensor:
    """softmax(scale · q·kᵀ, causal) · v for queries [T, H·G, D] of mixed rows over their blocks; returns [T, H·G·D].
    With a `soft_cap` c scaled scores s become c · tanh(s / c).

    The G query heads of a KV head are the rows of one matrix, so keys and values are read once and never repeated.
    """
    num_tokens, num_q_heads, head_dim = query.shape
    num_heads = kv_cache.shape[3]
    group_size = num_q_heads // num_heads
    cache_rows = kv_cache.view(-1, kv_cache.shape[-2] * head_dim)
    out = torch.empty(num_tokens, num_q_heads, head_dim, dtype=query.dtype)
    if plan.decode:
        # One selection and one copy for all groups, and not by indexing, which takes twice as long.
        grouped = query.index_select(0, plan.decode_tokens).view(-1, group_size, head_dim)  # [rows·H, G, D]
        result, first = torch.empty_like(grouped), 0
        for group in plan.decode:
            rows, last = group.gather_rows[layer], first + group.num_rows * num_heads
            gathered = workspace.take(len(rows), cache_rows.shape[1], query.dtype)
            torch.index_select(cache_rows, 0, rows, out=gathered)
            key, value = gathered.view(2, last - first, -1, head_dim).unbind(0)  # [n·H, len, D]
            if soft_cap:
                scores = torch.bmm(grouped[first:last], key.transpose(1, 2))
                scores = _cap(scores, scale, soft_cap).add_(group.bias)
            else:
                scores = torch.baddbmm(group.bias, grouped[first:last], key.transpose(1, 2), alpha=scale)
            torch.bmm(torch.softmax(scores, dim=-1), value, out=result[first:last])
            first = last
        out.index_copy_(0, plan.decode_tokens, result.view(-1, num_q_heads, head_dim))
    for seq in plan.prefill:
        rows = seq.gather_rows[layer]
        gathered = workspace.take(len(rows), cache_rows.shape[1], query.dtype)
        torch.index_select(cache_rows, 0, rows, out=gathered)
        key, value = gathered.view(2, num_heads, 1, -1, head_dim)[..., : seq.num_keys, :].unbind(0)  # [H, 1, len, D]
        shape = (num_heads, group_size, seq.num_keys, head_dim)
        grouped = query[seq.start : seq.end].view(-1, num_heads, group_size, head_dim).permute(1, 2, 0, 3)
        if soft_cap:
            result = _capped_attention(grouped, key, value, seq.mask, scale, soft_cap)
        else:
            result = F.scaled_dot_product_attention(
                grouped, key.expand(shape), value.expand(shape), seq.mask, is_causal=seq.mask is None, scale=scale
            )  # [H, G, query_len, D]
        out[seq.start : seq.end] = result.permute(2, 0, 1, 3).reshape(-1, num_q_heads, head_dim)
    return out.view(num_tokens, -1)


def _cap(scores: torch.Tensor, scale: float, soft_cap: float) -> torch.Tensor:
    """soft_cap · tanh(scale · scores / soft_cap), in place."""
    return scores.mul_(scale / soft_cap).tanh_().mul_(soft_cap)


def _capped_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float, cap: float
) -> torch.Tensor:
    """Attention of query [H, G, n, D] over key and value [H, 1, len, D] with capped scores, which torch's own does not
    have; one KV head after the other, because scores lie in memory here."""
    if mask is None:
        mask = _causal_bias(torch.arange(query.shape[2]), key.shape[2], query.dtype, 0)
    out = torch.empty_like(query)
    for head in range(len(query)):
        scores = _cap(query[head] @ key[head].transpose(1, 2), scale, cap).add_(mask)
        torch.matmul(torch.softmax(scores, dim=-1), value[head], out=out[head])
    return out
