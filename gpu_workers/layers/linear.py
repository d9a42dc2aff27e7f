"""Linear layers that know how they are split over the ranks of a tensor-parallel group and where a checkpoint's
separate matrices go in a fused one. How weights are stored is the quantization method's business.

Column-parallel layers split their output features, row-parallel ones their input features.
"""

import torch
from torch import nn

from gpu_workers.layers.build import BuildContext, Placement, place, set_loader


class Linear(nn.Module):
    """What all linear layers share: weights from the quantization method, an optional bias, the product."""

    def __init__(self, in_features: int, out_features: int, bias: bool, build: BuildContext) -> None:
        super().__init__()
        self._method = build.linear_method
        self._tp_rank, self._tp_size = build.tp_rank, build.tp_size
        self._loadable = self._method.create_weights(self, in_features, out_features, build)
        self.bias = build.parameter(out_features) if bias else None
        if self.bias is not None:
            self._loadable.append(self.bias)

    def finish_loading(self) -> None:
        """Called once when all weights are there."""
        self._loadable.clear()
        self._method.finish(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [num_tokens, in_features]
        return self._method.apply(self, x, self.bias)  # [num_tokens, out_features]


class MergedColumnParallelLinear(Linear):
    """Several matrices with the same input as one: a shard is its index, e.g. gate 0 and up 1."""

    def __init__(self, in_features: int, out_features: tuple[int, ...], bias: bool, build: BuildContext) -> None:
        self._sizes = tuple(build.share(size, "output features") for size in out_features)
        super().__init__(in_features, sum(self._sizes), bias, build)
        for parameter in self._loadable:
            set_loader(parameter, self._load, shards=tuple(range(len(self._sizes))))

    def act_and_mul(self, x: torch.Tensor, activation: str) -> torch.Tensor:  # [num_tokens, in_features]
        """act(first) · second of a layer of two equal matrices [num_tokens, out_features of one]; `activation` as the
        kernels name it."""
        assert len(self._sizes) == 2, self._sizes
        return self._method.apply_act_and_mul(self, x, self.bias, activation)

    def _load(self, parameter: nn.Parameter, tensor: torch.Tensor, shard: int) -> Placement:
        size = self._sizes[shard]
        target = parameter.data.narrow(0, sum(self._sizes[:shard]), size)
        return place(target, _part(tensor, 0, self._tp_rank, self._tp_size, size))


class QKVParallelLinear(Linear):
    """Query, key and value projections as one, by heads; the shards are "q", "k" and "v".

    Where there are fewer KV heads than ranks, several ranks keep the same head.
    """

    def __init__(
        self, hidden_size: int, head_dim: int, num_heads: int, num_kv_heads: int, bias: bool, build: BuildContext
    ) -> None:
        self._kv_replicas = max(1, build.tp_size // num_kv_heads)
        self.num_heads = build.share(num_heads, "attention heads")
        self.num_kv_heads = build.share(num_kv_heads * self._kv_replicas, "KV heads")
        kv_size = self.num_kv_heads * head_dim
        self._sizes = {"q": self.num_heads * head_dim, "k": kv_size, "v": kv_size}
        super().__init__(hidden_size, sum(self._sizes.values()), bias, build)
        for parameter in self._loadable:
            set_loader(parameter, self._load, shards=("q", "k", "v"))

    def _load(self, parameter: nn.Parameter, tensor: torch.Tensor, shard: str) -> Placement:
        size = self._sizes[shard]
        offset = {"q": 0, "k": self._sizes["q"], "v": self._sizes["q"] + self._sizes["k"]}[shard]
        replicas = 1 if shard == "q" else self._kv_replicas
        source = _part(tensor, 0, self._tp_rank // replicas, self._tp_size // replicas, size)
        return place(parameter.data.narrow(0, offset, size), source)


class RowParallelLinear(Linear):
    """Each rank multiplies its slice of the input; the products are to be summed over the ranks."""

    def __init__(self, in_features: int, out_features: int, bias: bool, build: BuildContext) -> None:
        self._in_size = build.share(in_features, "input features")
        super().__init__(self._in_size, out_features, bias, build)
        for parameter in self._loadable:
            set_loader(parameter, self._load)

    def _load(self, parameter: nn.Parameter, tensor: torch.Tensor, shard: object) -> Placement:
        if parameter is not self.bias:
            tensor = _part(tensor, 1, self._tp_rank, self._tp_size, self._in_size)
        elif self._tp_rank:  # the sum over the ranks takes the bias once
            tensor = torch.zeros_like(tensor)
        return place(parameter.data, tensor)


def _part(tensor: torch.Tensor, dim: int, rank: int, num_parts: int, size: int) -> torch.Tensor:
    """This rank's slice; a tensor of another size goes through whole, to be refused with its own shape."""
    if tensor.dim() <= dim or tensor.shape[dim] != size * num_parts:
        return tensor
    return tensor.narrow(dim, rank * size, size)
