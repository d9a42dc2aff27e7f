"""Paged attention row by row in float64 with every option of the Triton kernels: their oracle, slow and plain.

Legend: T = tokens of the step, N = scheduled sequences, S = rows, H = KV heads, G = query heads per KV head, D =
head_dim, B = block_size.
"""

import torch


def attention_reference(
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: int,
    rows: torch.Tensor,
    block_tables: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    sliding_window: int = 0,
    soft_cap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(bias(scale · q·kᵀ)) · v for queries [T, H·G, D], each over the tokens up to its own; float64 [T, H·G·D].

    `kv_cache` [num_blocks, L, 2, H, B, D]; `block_tables` [S, max_blocks] indexed by `rows` [N]; `query_start_loc` [N +
    1]; `seq_lens` [N] with this step's tokens. Options, in the order in which they act on a scaled score s of query
    position i and key position j: `soft_cap` c > 0: c · tanh(s / c); `alibi_slopes` [H·G]: s + slope · (j - i);
    `sliding_window` w > 0: only j > i - w; `sinks` [H·G]: one more score in the denominator, without a value. Tokens of
    no sequence give NaN.
    """
    num_tokens, num_q_heads, head_dim = query.shape
    num_heads, block_size = kv_cache.shape[3:5]
    out = torch.full((num_tokens, num_q_heads, head_dim), torch.nan, dtype=torch.float64, device=query.device)
    starts, lens = query_start_loc.tolist(), seq_lens.tolist()
    for i, row in enumerate(rows.tolist()):
        start, end, seq_len = starts[i], starts[i + 1], lens[i]
        if start == end or seq_len == 0:
            continue
        blocks = block_tables[row, : -(-seq_len // block_size)].long()
        kv = kv_cache[:, layer].index_select(0, blocks).double()  # [blocks, 2, H, B, D]
        key, value = kv.permute(1, 2, 0, 3, 4).reshape(2, num_heads, -1, head_dim)[:, :, :seq_len].unbind(0)
        grouped = query[start:end].double().view(end - start, num_heads, -1, head_dim)  # [n, H, G, D]
        scores = torch.einsum("nhgd,hkd->hgnk", grouped, key) * scale
        key_position = torch.arange(seq_len, device=query.device)
        distance = key_position - key_position[seq_len - (end - start) :, None]  # [n, seq_len]: j - i
        if soft_cap > 0:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        if alibi_slopes is not None:
            scores = scores + alibi_slopes.double().view(num_heads, -1, 1, 1) * distance
        hidden = distance > 0
        if sliding_window > 0:
            hidden = hidden | (distance <= -sliding_window)
        scores = scores.masked_fill(hidden, -torch.inf)
        if sinks is not None:
            sink = sinks.double().view(num_heads, -1, 1, 1).expand(*scores.shape[:-1], 1)
            scores = torch.cat((scores, sink), dim=-1)
        weights = scores.softmax(-1)[..., :seq_len]
        out[start:end] = torch.einsum("hgnk,hkd->nhgd", weights, value).reshape(end - start, num_q_heads, head_dim)
    return out.view(num_tokens, -1)
