"""Sends token ids to an engine core over ZeroMQ and prints the tokens that come back, step by step.

Run `python examples/zeromq_client.py [SOCKET] [MODEL]`.

SOCKET is `core-0.sock` in the server's run directory. By default the newest server of the temporary folder is used.
MODEL is a folder with a tokenizer.json. The client needs pyzmq and msgpack only; the tokenizer is for the text here.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from tokenizers import Tokenizer

from quire import EngineClient


def newest_socket() -> str:
    sockets = Path(tempfile.gettempdir()).glob("quire-*/core-0.sock")
    return str(max(sockets, key=lambda path: path.stat().st_mtime))


async def main() -> None:
    socket = sys.argv[1] if len(sys.argv) > 1 else newest_socket()
    model = sys.argv[2] if len(sys.argv) > 2 else "demo_model"
    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    prompt = tokenizer.encode("The function returns").ids
    async with EngineClient(f"ipc://{socket}") as engine:
        async for delta in engine.generate(prompt, {"max_tokens": 16, "temperature": 0.0, "ignore_eos": True}):
            print(list(delta.token_ids), repr(tokenizer.decode(list(delta.token_ids))))
            if delta.finished is not None:
                print(f"{delta.finished.reason}: {delta.finished.num_output_tokens} tokens")


asyncio.run(main())
