"""Readiness: a core that has work and makes no step is not ready for more."""

import pytest

from benchmarks.stub_config import frontend_config
from frontend import state as state_module
from frontend.client import EngineClient
from frontend.preparation.pool import PreparationPool
from frontend.preparation.preparer import Preparer
from frontend.state import FrontendState
from tests.frontend.support import write_model_folder


def test_only_work_without_steps_is_a_stall(tmp_path, monkeypatch: pytest.MonkeyPatch):
    write_model_folder(tmp_path)
    config = frontend_config(tmp_path)
    preparation = PreparationPool(Preparer.load(config))
    state = FrontendState(config, EngineClient("ipc://nowhere"), preparation)
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
