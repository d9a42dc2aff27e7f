"""The entry of a grammar process. The engine core starts it and hands down the descriptors:

    python -P -m engine_core.grammar RUN/config.json --link-fd L --plan-fd P --bell-fds B0,B1 \
        --heartbeat-fd H --heartbeat-index I

Exit codes: 0 the engine core is gone or this model can have no grammars, 1 a crash.
"""

import argparse
import logging
import socket
import sys

from engine_core.config.engine_config import load_serve_config
from engine_core.grammar.compiler import GrammarCompiler
from engine_core.grammar.matchers import max_lexers, num_mask_threads
from engine_core.grammar.server import GrammarServer
from engine_core.grammar.trials import TrialsEnded
from engine_core.grammar.vocabulary import Vocabulary, VocabularyError
from engine_core.ipc.frames import FramesClosed, FrameSocket
from engine_core.ipc.grammar_messages import GrammarReady, encode_grammar_message
from engine_core.ipc.heartbeat import Heartbeats
from engine_core.ipc.ring import Ring
from engine_core.ipc.step import StepShape, late_layout, plan_layout


def main() -> int:
    parser = argparse.ArgumentParser(prog="engine_core.grammar", description=__doc__)
    parser.add_argument("config")
    for name in ("link-fd", "plan-fd", "heartbeat-fd", "heartbeat-index"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--bell-fds", required=True)
    arguments = parser.parse_args()
    logging.basicConfig(format="grammar: %(levelname)s: %(message)s", level=logging.INFO)
    config = load_serve_config(arguments.config)
    engine = config.engine
    refusal, compiler = None, None
    try:
        folder, model = config.frontend.model_path, engine.model
        vocabulary = Vocabulary.load(folder, model.vocab_size, model.eos_token_ids)
        compiler = GrammarCompiler(vocabulary, max_lexers(num_mask_threads()))
    except VocabularyError as error:
        refusal = str(error)
    frames = FrameSocket(socket.socket(fileno=arguments.link_fd))
    heartbeats = Heartbeats(arguments.heartbeat_fd)
    if compiler is None:
        heartbeats.retire(arguments.heartbeat_index)
    try:
        frames.send(encode_grammar_message(GrammarReady(refusal=refusal)))
        if compiler is None:
            return 0
        shape = StepShape(**engine.step_capacities())
        ring = Ring(
            arguments.plan_fd,
            plan_layout(shape).num_bytes,
            engine.scheduler.num_slots,
            engine.parallel.world_size,
            late_layout(shape).num_bytes,
        )
        bells = [int(fd) for fd in arguments.bell_fds.split(",")]
        GrammarServer(vocabulary, compiler, frames, ring, shape, bells, heartbeats, arguments.heartbeat_index).run()
    except FramesClosed:
        return 0
    except TrialsEnded as ended:
        logging.error("%s", ended)
        return 1
    raise AssertionError("a grammar process' loop ends by an exception only")


if __name__ == "__main__":
    sys.exit(main())
