"""Layer groups: which layers share a block table, and how many blocks a request takes in all of them.

Layers that see all tokens need every block of a request; layers with a sliding window of W tokens only the last few. So
each kind has block tables of its own, and a block of a window is given back once the window has passed it. All groups
share one pool, because all blocks have the same size: every group has the same number of layers, and a layer's keys and
values lie at the layer's place within its group's blocks. Gemma 3's 40 layers with a window and 8 without become six
groups of 8: one full and five with a window. A kind whose layers do not divide evenly leaves places empty. Layers take
turns at groups, so that a pipeline stage has almost the same number of layers in each group of a kind.

A model whose layers all see the same is one group, with blocks that hold all layers. A window that is not shorter than
the longest context hides nothing, and counts as none.
"""

from dataclasses import dataclass

from engine_core.config.model_config import ModelConfig
from engine_core.config.stages import Stage

_MAX_GROUPS = 8
"""Each group costs the engine core a table entry for every block of tokens."""


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers with a common block table, in the order of their places in a block."""

    layers: tuple[int, ...]
    sliding_window: int
    """Tokens that a query sees, itself included; 0: all."""


@dataclass(frozen=True, slots=True)
class LayerGroups:
    """All groups of a model; those without a window come first."""

    groups: tuple[LayerGroup, ...]
    layers_per_block: int

    def __len__(self) -> int:
        return len(self.groups)

    def place(self, layer: int) -> tuple[int, int]:
        """The layer's group and its place in that group's blocks."""
        return next((i, group.layers.index(layer)) for i, group in enumerate(self.groups) if layer in group.layers)

    def of_stage(self, stage: Stage) -> "LayerGroups":
        """The same groups and block tables with the layers of `stage` alone. A group may be empty there."""
        groups = tuple(
            LayerGroup(tuple(layer for layer in group.layers if layer in stage.layers), group.sliding_window)
            for group in self.groups
        )
        return LayerGroups(groups, max(len(group.layers) for group in groups))

    @property
    def num_layers(self) -> int:
        return sum(len(group.layers) for group in self.groups)

    @property
    def windows(self) -> tuple[int, ...]:
        """The sliding window of each group, 0 for none."""
        return tuple(group.sliding_window for group in self.groups)


@dataclass(frozen=True, slots=True)
class BlockDemand:
    """How many blocks one request takes. All windows of a model have the same length."""

    num_full: int
    """Groups that keep all blocks."""
    num_windowed: int
    sliding_window: int
    block_size: int
    max_chunk: int
    """Tokens that one step may compute of a request: a window's blocks stay until the whole chunk has seen them."""

    @classmethod
    def of(cls, windows: tuple[int, ...], block_size: int, max_chunk: int) -> "BlockDemand":
        """For groups with these windows (0: none)."""
        num_windowed = sum(window > 0 for window in windows)
        return cls(len(windows) - num_windowed, num_windowed, max(windows), block_size, max_chunk)

    def peak(self, num_tokens: int) -> int:
        """The most blocks that a request holds at once on its way to `num_tokens`, when it runs alone."""
        num_blocks = -(-num_tokens // self.block_size)
        return self.num_full * num_blocks + self.num_windowed * min(num_blocks, self.most_of_window(self.max_chunk))

    def at_end(self, num_tokens: int) -> int:
        """The most blocks that a request holds once it has `num_tokens` and computes one after the other."""
        num_blocks = -(-num_tokens // self.block_size)
        return self.num_full * num_blocks + self.num_windowed * min(num_blocks, self.most_of_window(1))

    def longest(self, num_blocks: int, most: int) -> int:
        """The length, at most `most`, of the longest request that `num_blocks` are enough for."""
        if self.peak(most) <= num_blocks:
            return most
        low, high = 0, most // self.block_size
        while low < high:  # in whole blocks of tokens
            middle = (low + high + 1) // 2
            if self.peak(middle * self.block_size) <= num_blocks:
                low = middle
            else:
                high = middle - 1
        return low * self.block_size

    def most_of_window(self, chunk: int) -> int:
        """Blocks of `chunk` tokens and all that the first of them sees, wherever in a block that begins."""
        num_tokens = self.sliding_window - 1 + chunk
        return -(-(num_tokens - 1) // self.block_size) + 1


def layer_groups(model: ModelConfig, max_model_len: int) -> LayerGroups:
    """The groups of a model that serves contexts of up to `max_model_len` tokens.

    Layers per block are chosen so that the longest request takes the least memory, places that stay empty included, and
    among those so that groups are few.
    """
    layers = range(model.num_hidden_layers)
    hides = 0 < model.sliding_window < max_model_len
    sliding = frozenset(model.sliding_layers if hides else ())
    windowed = tuple(layer for layer in layers if layer in sliding)
    full = tuple(layer for layer in layers if layer not in sliding)
    kinds = [(kind, window) for kind, window in ((full, 0), (windowed, model.sliding_window)) if kind]

    def cost(size: int) -> tuple[int, int]:
        counts = [-(-len(kind) // size) for kind, _ in kinds]
        kept = [window or max_model_len for _, window in kinds]
        return sum(count * size * tokens for count, tokens in zip(counts, kept, strict=True)), sum(counts)

    size = min((size for size in range(1, len(layers) + 1) if cost(size)[1] <= _MAX_GROUPS), key=cost)
    counts = [-(-len(kind) // size) for kind, _ in kinds]
    groups = tuple(
        LayerGroup(kind[first::count], window)
        for (kind, window), count in zip(kinds, counts, strict=True)
        for first in range(count)
    )
    return LayerGroups(groups, size)
