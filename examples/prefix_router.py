"""Routes prompts to the engine core whose prefix cache has most of the prompt, from the events of the caches.

Run `python examples/prefix_router.py KEY_FILE SOCKET SOCKET ...`.

Each server runs with `--prefix-hash-key-file KEY_FILE`. SOCKET is `core-0.sock` in the run directory of a server.
"""

import asyncio
import contextlib
import hashlib
import struct
import sys
from pathlib import Path

from frontend.client import CachedBlocks, EngineClient

BLOCK_SIZE = 16  # the servers' --block-size


def digests_of(tokens: list[int], key: bytes) -> list[bytes]:
    """The digests of the full blocks of a prompt without salt and adapter; docs/protocol.md describes them."""
    digests = [hashlib.blake2b(bytes(10), digest_size=16, key=key).digest()]
    for start in range(0, len(tokens) - BLOCK_SIZE + 1, BLOCK_SIZE):
        block = struct.pack(f"<{BLOCK_SIZE}i", *tokens[start : start + BLOCK_SIZE])
        digests.append(hashlib.blake2b(digests[-1] + block, digest_size=16, key=key).digest())
    return digests[1:]


async def main(key: bytes, sockets: list[str]) -> None:
    async with contextlib.AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(EngineClient(f"ipc://{socket}")) for socket in sockets]
        caches = [CachedBlocks(engine) for engine in engines]
        followers = [asyncio.create_task(cache.follow()) for cache in caches]
        for number, token in enumerate([5, 6, 7, 5, 6, 7]):  # three prompts, each of them twice
            digests = digests_of([token] * 100, key)
            known = [cache.num_leading(digests) for cache in caches]
            best = known.index(max(known)) if any(known) else number % len(engines)
            print(f"prompt {token}: engine {best} has {known[best]} of {len(digests)} blocks")
            async for _ in engines[best].generate([token] * 100, {"max_tokens": 4}):
                pass
        for follower in followers:
            follower.cancel()


asyncio.run(main(bytes.fromhex(Path(sys.argv[1]).read_text().strip()), sys.argv[2:]))
