"""Hash chains of recent prompts, for those that begin alike: tokens compare a hundred times as fast as they hash.

Samples of one prompt and questions behind one system prompt come by the hundred, and each would hash all of it again.
"""

from collections import OrderedDict

import numpy as np

_MAX_CHAINS = 256
_MAX_BLOCKS = 65536
"""Of all chains together: some 8 MB at blocks of 16 tokens."""


class RecentChains:
    """The last prompts by the digest of their first block, which says salt and adapter too."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._chains: OrderedDict[bytes, tuple[np.ndarray, list[bytes]]] = OrderedDict()
        self._num_blocks = 0

    def common(self, first: bytes, tokens: np.ndarray) -> list[bytes]:
        """The hashes of all blocks that begin `tokens` as they begin the chain known for its `first` digest."""
        chain = self._chains.get(first)
        if chain is None:
            return []
        known, hashes = chain
        length = min(len(known), len(tokens))
        differ = np.flatnonzero(known[:length] != tokens[:length])
        return hashes[: (int(differ[0]) if len(differ) else length) // self._block_size]

    def remember(self, tokens: np.ndarray, hashes: list[bytes]) -> None:
        """Keeps a whole chain in place of the one that began alike."""
        before = self._chains.pop(hashes[0], None)
        self._num_blocks += len(hashes) - (0 if before is None else len(before[1]))
        self._chains[hashes[0]] = tokens, list(hashes)
        while self._num_blocks > _MAX_BLOCKS or len(self._chains) > _MAX_CHAINS:
            _, (_, oldest) = self._chains.popitem(last=False)
            self._num_blocks -= len(oldest)
