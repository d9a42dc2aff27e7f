"""What the state counts: steps of the core, for readiness, and handlers, for draining."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.stub_config import frontend_config
from frontend import state as state_module
from frontend.client import EngineClient
from frontend.input_processor import InputProcessor, Limits
from frontend.preparation.jobs import AnyJob
from frontend.preparation.pool import PreparationPool
from frontend.routes.messages import count_tokens
from frontend.routes.tokenization import detokenize, tokenize
from frontend.state import FrontendState
from tests.frontend.support import preparation_pool

NO_RESPONSES: Any = None


def test_only_work_without_steps_is_a_stall(tmp_path, monkeypatch: pytest.MonkeyPatch):
    preparation = preparation_pool(tmp_path)
    state = FrontendState(frontend_config(tmp_path), EngineClient("ipc://nowhere"), preparation, NO_RESPONSES)
    now = 100.0
    monkeypatch.setattr(state_module.time, "monotonic", lambda: now)
    assert state.note_progress(5, 1) == 0
    now = 130.0
    assert state.note_progress(5, 1) == 30
    now = 140.0
    assert state.note_progress(6, 1) == 0
    now = 190.0
    assert state.note_progress(6, 0) == 0, "an idle core may rest"
    now = 200.0
    assert state.note_progress(6, 2) == 10
    state.client._context.term()
    preparation.close()


@pytest.mark.parametrize(
    ("handler", "body"),
    [
        (tokenize, b'{"prompt": "A fox."}'),
        (detokenize, b'{"tokens": [1]}'),
        (count_tokens, b'{"messages": [{"role": "user", "content": "A fox."}]}'),
    ],
)
def test_preparation_without_generation_is_waited_for_when_draining(tmp_path, monkeypatch, handler, body):
    preparation = preparation_pool(tmp_path)
    state = FrontendState(frontend_config(tmp_path), EngineClient("ipc://nowhere"), preparation, NO_RESPONSES)
    limits = Limits(max_model_len=64, max_logprobs=0, vocab_size=1000, eos_token_ids=())
    state._input_processor = InputProcessor(preparation, limits, {})  # as once the core has introduced itself
    num_open = []

    async def run(self: PreparationPool, job: AnyJob) -> object:
        num_open.append(state.num_open)
        return job.run(self.preparer)

    monkeypatch.setattr(PreparationPool, "run", run)
    assert asyncio.run(handler(SimpleNamespace(body=body), state)).status == 200
    assert num_open == [1]
    assert state.num_open == 0
    state.client._context.term()
    preparation.close()
