"""The long variant of paged attention on Hopper: softmax(scale · q·kᵀ, causal) · v on wgmma, fed by TMA.

The same task map, partials and formulas as kernels/paged_attention.py (whose docstring has them and the legend), for
16-bit elements and head_dim 64, 128 or 256. One program per SM is specialized by warps: a producer has the copy engine
fetch queries and the blocks of keys and values, two consumers of four warps have half of the q-tile's rows each. One
starts the product of the next keys before that of the last probabilities with their values, so that the softmax of one
tile runs beside the matrix units' work on another, and the consumers issue products in turns, so that one's softmax
runs beside the other's products (FlashAttention-3, Shah et al. 2024). Blocks lie anywhere in the cache: one copy brings
B rows of 64 elements, which is what a swizzled row of shared memory holds, so a tile of 128 keys (64 where D is 256)
takes 128 / B · D / 64 copies for keys and as many for values, of which each names its block.

What lies past the last key in shared memory: keys count for nothing, since their scores are hidden; values would, since
0 · NaN is NaN, and are set to zero. Blocks wholly before the window may be another request's by now: the copy engine is
sent outside the cache instead, where it reads zeros.

Written in Gluon, because Triton's own pipeliner neither specializes warps on Hopper nor lets two products overlap with
the softmax between them. Measured: see docs/log.md.
"""

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernels.attention_combine import LOG2E
from kernels.attention_workspace import PROGRAM_WORDS, SEGMENT_WORDS, WGMMA_TILES, AttentionWorkspace
from kernels.hopper_loop import consume, produce

_PANEL = 64
"""Elements of a row of shared memory whose 128 bytes are swizzled."""
_WORKER_REGISTERS = (240, 24)
"""Of the second consumer and the producer; the first consumer gets what is left, which is as much as the second's."""
_PANELS_2D = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
_PANELS_3D = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=3)


@gluon.jit
def _hopper_attention_kernel(
    query_desc,  # [T, H·G, D], boxes of half a q-tile's tokens, the G heads of a KV head, 64 elements
    cache_desc,  # one layer's cache as rows of D elements, boxes of B rows and 64 elements
    out,  # [T, H·G·D]
    block_tables,  # int32 [S, max_blocks]
    segments,  # int32 [segments, SEGMENT_WORDS]
    programs,  # int32 [P, PROGRAM_WORDS]
    partial_acc,  # float32 [P, 2, BLOCK_M, D]
    partial_stats,  # float32 [P, 2, 2, BLOCK_M]
    arrivals,  # int32 [segments, H], zero before and after
    shared_out,  # float32 [shared tokens, H·G, D]
    shared_lse,  # float32 [shared tokens, H·G]
    sinks,  # float32 [H·G], or None
    stride_block,  # in rows of D elements, as the next two
    stride_value,
    stride_head,
    stride_table,
    qk_scale,  # to units of log2; with a soft cap: to the exponent of its tanh
    soft_cap,  # times log2(e)
    NUM_KV_HEADS: gl.constexpr,
    GROUP_SIZE: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    WINDOW: gl.constexpr,
    SOFT_CAP: gl.constexpr,
    SINKS: gl.constexpr,
    TO_SHARED: gl.constexpr,
    OVERHEAD: gl.constexpr,
    STAGES: gl.constexpr,
    BLOCK_N: gl.constexpr,
    HALF_M: gl.constexpr,
    PANEL: gl.constexpr,
    PANELS_2D: gl.constexpr,
    PANELS_3D: gl.constexpr,
    SEGMENT_WORDS: gl.constexpr,
    PROGRAM_WORDS: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
):
    """One persistent program: its run of units, piece by piece."""
    dtype: gl.constexpr = query_desc.dtype
    NUM_PANELS: gl.constexpr = HEAD_DIM // PANEL
    query_smem = gl.allocate_shared_memory(dtype, [2, NUM_PANELS * HALF_M, PANEL], PANELS_2D)
    key_smem = gl.allocate_shared_memory(dtype, [STAGES, NUM_PANELS * BLOCK_N, PANEL], PANELS_2D)
    value_smem = gl.allocate_shared_memory(dtype, [STAGES, NUM_PANELS * BLOCK_N, PANEL], PANELS_2D)
    query_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    query_empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    key_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    key_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    value_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    value_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    mbarrier.init(query_full, count=1)
    mbarrier.init(query_empty, count=2)
    mbarrier.init(turns.index(0), count=1)
    mbarrier.init(turns.index(1), count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(key_full.index(stage), count=1)
        mbarrier.init(key_empty.index(stage), count=2)
        mbarrier.init(value_full.index(stage), count=1)
        mbarrier.init(value_empty.index(stage), count=2)
    program = gl.program_id(0)
    record = programs + program * PROGRAM_WORDS
    gl.warp_specialize(
        [
            (consume, (
                out, shared_out, shared_lse, sinks, partial_acc, partial_stats, arrivals, query_smem, key_smem,
                value_smem, query_full, query_empty, key_full, key_empty, value_full, value_empty, turns, segments,
                record, program, qk_scale, soft_cap,
                0, NUM_KV_HEADS, GROUP_SIZE, HEAD_DIM, SINKS, TO_SHARED, WINDOW, SOFT_CAP, OVERHEAD, STAGES, BLOCK_N,
                HALF_M, PANEL, PANELS_2D, SEGMENT_WORDS, PROGRAM_WORDS,
            )),
            (consume, (
                out, shared_out, shared_lse, sinks, partial_acc, partial_stats, arrivals, query_smem, key_smem,
                value_smem, query_full, query_empty, key_full, key_empty, value_full, value_empty, turns, segments,
                record, program, qk_scale, soft_cap,
                1, NUM_KV_HEADS, GROUP_SIZE, HEAD_DIM, SINKS, TO_SHARED, WINDOW, SOFT_CAP, OVERHEAD, STAGES, BLOCK_N,
                HALF_M, PANEL, PANELS_2D, SEGMENT_WORDS, PROGRAM_WORDS,
            )),
            (produce, (
                query_desc, cache_desc, query_smem, key_smem, value_smem, query_full, query_empty, key_full, key_empty,
                value_full, value_empty, block_tables, segments, record, stride_block, stride_value, stride_head,
                stride_table, NUM_KV_HEADS, GROUP_SIZE, HEAD_DIM, BLOCK_SIZE, WINDOW, OVERHEAD, STAGES, BLOCK_N, HALF_M,
                PANEL, PANELS_3D, SEGMENT_WORDS, PROGRAM_WORDS,
            )),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip


def supports(device: torch.device, dtype: torch.dtype, head_dim: int, group_size: int, block_size: int) -> bool:
    """Whether this kernel can take the long variant; it has no ALiBi."""
    return (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device)[0] == 9  # wgmma is in no other architecture
        and dtype.itemsize == 2
        and head_dim in WGMMA_TILES
        and group_size in (1, 2, 4, 8, 16, 32, 64)
        and block_size >= 8  # swizzling repeats after 8 rows
        and WGMMA_TILES[head_dim].block_n % block_size == 0
    )


def launch(
    workspace: AttentionWorkspace,
    query: torch.Tensor,
    layer_cache: torch.Tensor,
    out: torch.Tensor,
    block_tables: torch.Tensor,
    scale: float,
    soft_cap: float,
    sinks: torch.Tensor | None,
) -> None:
    """Attention of the long rows of the step that was mapped last; shapes as in `paged_attention`, which checks them,
    but `layer_cache` is one layer's [num_blocks, 2, H, B, D]."""
    variant, head_dim, group_size = workspace.long, workspace.head_dim, workspace.group_size
    block_size = layer_cache.shape[3]
    strides = layer_cache.stride()
    num_rows = sum((size - 1) * stride for size, stride in zip(layer_cache.shape[:4], strides, strict=False)) + head_dim
    tile = variant.tile
    # The consumers know that the stage of two tiles ago is the present one's.
    assert (tile.block_m, tile.num_warps, tile.num_stages) == (128, 4, 2), tile
    half = tile.block_m // 2
    _hopper_attention_kernel[(variant.num_programs,)](
        TensorDescriptor(
            query, list(query.shape), list(query.stride()), [half // group_size, group_size, _PANEL], _PANELS_3D
        ),
        TensorDescriptor(
            layer_cache, [num_rows // head_dim, head_dim], [head_dim, 1], [block_size, _PANEL], _PANELS_2D
        ),
        out,
        block_tables,
        variant.segments,
        variant.programs,
        variant.partial_acc,
        variant.partial_stats,
        variant.arrivals,
        workspace.shared_out,
        workspace.shared_lse,
        sinks,
        strides[0] // head_dim,
        strides[1] // head_dim,
        strides[2] // head_dim,
        block_tables.stride(0),
        scale * LOG2E.value * (2 / soft_cap if soft_cap > 0 else 1),
        soft_cap * LOG2E.value,
        NUM_KV_HEADS=workspace.num_kv_heads,
        GROUP_SIZE=group_size,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        WINDOW=workspace.sliding_window,
        SOFT_CAP=soft_cap > 0,
        SINKS=sinks is not None,
        TO_SHARED=workspace.max_shared_tokens > 0,
        OVERHEAD=tile.overhead,
        STAGES=tile.num_stages,
        BLOCK_N=tile.block_n,
        HALF_M=half,
        PANEL=_PANEL,
        PANELS_2D=_PANELS_2D,
        PANELS_3D=_PANELS_3D,
        SEGMENT_WORDS=SEGMENT_WORDS,
        PROGRAM_WORDS=PROGRAM_WORDS,
        CONSUMER_REGISTERS=_WORKER_REGISTERS[0],
        PRODUCER_REGISTERS=_WORKER_REGISTERS[1],
        num_warps=tile.num_warps,
    )
