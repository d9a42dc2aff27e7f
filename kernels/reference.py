"""Plain PyTorch versions of the operations of a model's layers: the oracle of the Triton kernels. The CPU uses some.

They know nothing of requests, models or configurations: tensors in, tensors out. Their neighbours:
`reference_attention`, `reference_sampling` and `reference_random`.

Legend: T = tokens of the step, D = head_dim.
"""

import torch
import torch.nn.functional as F


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
