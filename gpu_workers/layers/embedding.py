"""The first and the last matrix of a model: token embeddings and the projection to logits."""

import torch
from torch import nn

from gpu_workers.layers.build import BuildContext, load_whole, set_loader


class Embedding(nn.Module):
    """One vector per token id, times a number where the model wants that; whole on every rank for now."""

    def __init__(self, vocab_size: int, hidden_size: int, build: BuildContext, scale: float = 1.0) -> None:
        super().__init__()
        self._scale = torch.tensor(scale, dtype=build.dtype).item()  # rounded as in training
        self._operations = build.operations
        self.weight = build.parameter(vocab_size, hidden_size)
        set_loader(self.weight, load_whole)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:  # [num_tokens]
        x = self._operations.embed(self.weight, input_ids)  # [num_tokens, hidden_size]
        return x if self._scale == 1.0 else x.mul_(self._scale)


class LMHead(nn.Module):
    """Hidden states to logits in float32; shares the embedding's matrix where a model ties them."""

    def __init__(self, vocab_size: int, hidden_size: int, build: BuildContext, tied: Embedding | None) -> None:
        super().__init__()
        self._operations = build.operations
        if tied is not None:
            self.weight = tied.weight
        else:
            self.weight = build.parameter(vocab_size, hidden_size)
            set_loader(self.weight, load_whole)

    def finish_loading(self) -> None:
        """Packs the matrix; a tied one stays readable for the embedding as well."""
        self._packed = self._operations.pack_weight(self.weight.data)
        del self.weight

    def forward(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:  # [num_rows, hidden_size]
        return self._operations.logits(hidden, self._packed, out)  # [num_rows, vocab_size]
