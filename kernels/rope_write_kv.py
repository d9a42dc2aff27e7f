"""Between the QKV projection and attention: norms of queries and keys, rotary embedding, KV written to the cache.

For each token t at position p, and each head x of the queries and keys:

    x  <- x / sqrt(mean(x²) + eps) · norm_weight                        (optional, per head, as in Qwen3)
    x1 <- x1·cos[p] - x2·sin[p],   x2 <- x2·cos[p] + x1·sin[p]          (Su et al. 2021; halves x1, x2: NeoX's order)

Rotated queries take their old place in qkv. Rotated keys and untouched values go to slot slot_mapping[t] = block · B +
offset of the paged cache; a slot of -1 (padding) is not written. Computed in float32, rounded once.

Traffic per token: 2·(H·G + 2·H)·D·s bytes (s bytes an element), each touched once; the token's row of cosines and sines
comes from the caches for all programs but the first. Some ten flops an element: bound by memory at many tokens, by the
latency of two dependent loads (position, then cosines) at a few. Measured: see docs/log.md.

Legend: T = tokens of the step, H = KV heads, G = query heads per KV head, D = head_dim, B = block_size, L = layers.
"""

import torch
import triton
import triton.language as tl

from kernels.checks import check_dense, check_rows
from kernels.programmatic import let_dependents_start, may_overlap, wait_for_earlier_kernels

_MAX_HEADS = 16
"""Heads of a token that one program takes; a KV head counts twice, being a key and a value."""


@triton.jit
def _rotated_heads(ptrs, mask, norm_ptr, cos_sin_ptr, eps, HEAD_DIM: tl.constexpr, BLOCK_HALF: tl.constexpr):
    """The halves, float32 [heads, BLOCK_HALF], of normalized (where `norm_ptr` is not None) and rotated heads, whose
    first halves lie at `ptrs`; `cos_sin_ptr` is the position's row."""
    HALF: tl.constexpr = HEAD_DIM // 2
    # As many rows as there are heads, so that Triton lays these tiles out like those of the heads and moves nothing
    # between threads afterwards; the repeated loads come from the first-level cache.
    cols = tl.broadcast_to(tl.arange(0, BLOCK_HALF)[None, :], ptrs.shape)
    cos = tl.load(cos_sin_ptr + cols, mask=cols < HALF, other=0.0)
    sin = tl.load(cos_sin_ptr + HALF + cols, mask=cols < HALF, other=0.0)
    if norm_ptr is not None:
        weight1 = tl.load(norm_ptr + cols, mask=cols < HALF, other=0.0).to(tl.float32)
        weight2 = tl.load(norm_ptr + HALF + cols, mask=cols < HALF, other=0.0).to(tl.float32)
    x1 = tl.load(ptrs, mask=mask, other=0.0).to(tl.float32)
    x2 = tl.load(ptrs + HALF, mask=mask, other=0.0).to(tl.float32)
    if norm_ptr is not None:
        mean_square = tl.sum(x1 * x1 + x2 * x2, axis=1, keep_dims=True) / HEAD_DIM  # [heads, 1]
        scale = tl.rsqrt(mean_square + eps)
        x1 = x1 * scale * weight1
        x2 = x2 * scale * weight2
    return x1 * cos - x2 * sin, x2 * cos + x1 * sin


@triton.jit
def _rope_write_kv_kernel(
    qkv_ptr,  # [T, (NUM_Q_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM], row stride qkv_stride
    cos_sin_ptr,  # float32 [max_positions, HEAD_DIM]: cosines, then sines
    positions_ptr,  # int32 [T]
    slot_mapping_ptr,  # int32 [T]
    key_cache_ptr,  # this layer's [num_blocks, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM], strides block_stride, head_stride
    value_cache_ptr,  # like key_cache_ptr
    q_norm_ptr,  # [HEAD_DIM], or None: no norms
    k_norm_ptr,  # [HEAD_DIM], or None
    qkv_stride,
    block_stride,
    head_stride,
    eps,
    NUM_Q_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    NUM_Q_CHUNKS: tl.constexpr,
    NUM_KV_CHUNKS: tl.constexpr,
    Q_HEADS: tl.constexpr,  # of one program
    KV_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    let_dependents_start()
    wait_for_earlier_kernels()
    HALF: tl.constexpr = HEAD_DIM // 2
    chunk = tl.program_id(0) % (NUM_Q_CHUNKS + NUM_KV_CHUNKS)  # the query chunks of a token, then its KV chunks
    token = tl.program_id(0) // (NUM_Q_CHUNKS + NUM_KV_CHUNKS)
    cols = tl.arange(0, BLOCK_HALF)[None, :]
    in_half = cols < HALF

    angles_ptr = cos_sin_ptr + tl.load(positions_ptr + token).to(tl.int64) * HEAD_DIM
    token_ptr = qkv_ptr + token.to(tl.int64) * qkv_stride

    # The two branches share no names: Triton would want the same shapes behind them.
    if chunk < NUM_Q_CHUNKS:
        q_heads = chunk * Q_HEADS + tl.arange(0, Q_HEADS)[:, None]
        q_mask = (q_heads < NUM_Q_HEADS) & in_half
        query_ptrs = token_ptr + q_heads * HEAD_DIM + cols
        q1, q2 = _rotated_heads(query_ptrs, q_mask, q_norm_ptr, angles_ptr, eps, HEAD_DIM, BLOCK_HALF)
        tl.store(query_ptrs, q1.to(qkv_ptr.dtype.element_ty), mask=q_mask)
        tl.store(query_ptrs + HALF, q2.to(qkv_ptr.dtype.element_ty), mask=q_mask)
    else:
        slot = tl.load(slot_mapping_ptr + token)
        kv_heads = (chunk - NUM_Q_CHUNKS) * KV_HEADS + tl.arange(0, KV_HEADS)[:, None]
        kv_mask = (kv_heads < NUM_KV_HEADS) & in_half & (slot >= 0)
        key_ptrs = token_ptr + (NUM_Q_HEADS + kv_heads) * HEAD_DIM + cols
        value_ptrs = key_ptrs + NUM_KV_HEADS * HEAD_DIM
        k1, k2 = _rotated_heads(key_ptrs, kv_mask, k_norm_ptr, angles_ptr, eps, HEAD_DIM, BLOCK_HALF)
        v1 = tl.load(value_ptrs, mask=kv_mask, other=0.0)
        v2 = tl.load(value_ptrs + HALF, mask=kv_mask, other=0.0)
        tile = (slot // BLOCK_SIZE).to(tl.int64) * block_stride + kv_heads.to(tl.int64) * head_stride
        at = tile + (slot % BLOCK_SIZE) * HEAD_DIM + cols
        tl.store(key_cache_ptr + at, k1.to(key_cache_ptr.dtype.element_ty), mask=kv_mask)
        tl.store(key_cache_ptr + at + HALF, k2.to(key_cache_ptr.dtype.element_ty), mask=kv_mask)
        tl.store(value_cache_ptr + at, v1, mask=kv_mask)
        tl.store(value_cache_ptr + at + HALF, v2, mask=kv_mask)


def rope_write_kv(
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    slot_mapping: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: int,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    """Does for one layer what the module's docstring says and returns the queries, a view of `qkv`: [T, H·G, D].

    `qkv` [T, (H·G + 2·H)·D] holds queries, keys, values and may have a row stride; `cos_sin` is float32
    [max_positions, D] (D/2 cosines, D/2 sines); `positions` and `slot_mapping` are int32 [T]; `kv_cache` [num_blocks,
    L, 2, H, B, D] has the type of `qkv` and contiguous tiles B x D; `q_norm` and `k_norm` [D], of
    that type or float32, come together or not at all.
    """
    num_kv_heads, block_size, head_dim = kv_cache.shape[3:]
    num_tokens, num_q_heads = len(qkv), qkv.shape[1] // head_dim - 2 * num_kv_heads
    check_rows(qkv, (num_tokens, (num_q_heads + 2 * num_kv_heads) * head_dim), kv_cache.dtype)
    check_dense(cos_sin, (len(cos_sin), head_dim), torch.float32)
    check_dense(positions, (num_tokens,), torch.int32)
    check_dense(slot_mapping, (num_tokens,), torch.int32)
    assert kv_cache.stride()[4:] == (head_dim, 1), kv_cache.stride()
    assert head_dim % 2 == 0, head_dim
    assert (q_norm is None) == (k_norm is None)
    for weight in (q_norm, k_norm):
        if weight is not None:
            check_dense(weight, (head_dim,), weight.dtype)
            assert weight.dtype in (qkv.dtype, torch.float32), weight.dtype

    q_heads = min(_MAX_HEADS, triton.next_power_of_2(num_q_heads))
    kv_heads = min(_MAX_HEADS // 2, triton.next_power_of_2(num_kv_heads))
    q_chunks, kv_chunks = triton.cdiv(num_q_heads, q_heads), triton.cdiv(num_kv_heads, kv_heads)
    block_half = triton.next_power_of_2(head_dim // 2)
    # A thread has 4 elements of each half. With 8, the compiler saves registers by loading angles and norm weights only
    # after the reduction, one latency after the other; and 8 bytes of bf16 a thread are coalesced all the same.
    num_warps = max(1, min(8, q_heads * block_half // (32 * 4)))
    _rope_write_kv_kernel[(num_tokens * (q_chunks + kv_chunks),)](
        qkv,
        cos_sin,
        positions,
        slot_mapping,
        kv_cache[:, layer, 0],  # views: the layer's number in a pointer needs no argument that differs between layers
        kv_cache[:, layer, 1],
        q_norm,
        k_norm,
        qkv.stride(0),
        kv_cache.stride(0),
        kv_cache.stride(3),
        eps,
        NUM_Q_HEADS=num_q_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        NUM_Q_CHUNKS=q_chunks,
        NUM_KV_CHUNKS=kv_chunks,
        Q_HEADS=q_heads,
        KV_HEADS=kv_heads,
        BLOCK_HALF=block_half,
        num_warps=num_warps,
        launch_pdl=may_overlap(),
    )
    return qkv[:, : num_q_heads * head_dim].view(num_tokens, num_q_heads, head_dim)
