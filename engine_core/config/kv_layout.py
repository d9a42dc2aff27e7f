"""How keys and values lie in the KV cache: what memory plan, block pool, host tier, workspaces and kernels go by.

A block holds `block_size` tokens of one layer group (`layer_groups.py`). All groups have the same layout, because all
share one pool of blocks.
"""

from dataclasses import dataclass

from engine_core.config.model_config import DTYPE_BYTES, ModelConfig


@dataclass(frozen=True, slots=True)
class KVLayout:
    """The cache of one rank."""

    layers_per_block: int
    num_kv_heads: int
    block_size: int
    """Tokens in a block."""
    head_dim: int
    """Values of a key, and of a value."""
    dtype: str

    @classmethod
    def of(cls, model: ModelConfig, layers_per_block: int, block_size: int, dtype: str) -> "KVLayout":
        """For `model`, a whole one or a rank's share."""
        return cls(layers_per_block, model.num_key_value_heads, block_size, model.head_dim, dtype)

    def cache_shape(self, num_blocks: int) -> tuple[int, ...]:
        """[num_blocks, layers_per_block, 2, num_kv_heads, block_size, head_dim]: keys, then values."""
        return num_blocks, self.layers_per_block, 2, self.num_kv_heads, self.block_size, self.head_dim

    @property
    def token_bytes(self) -> int:
        """Of a token's keys and values in one layer."""
        return 2 * self.num_kv_heads * self.head_dim * DTYPE_BYTES[self.dtype]

    @property
    def block_bytes(self) -> int:
        return self.layers_per_block * self.block_size * self.token_bytes
