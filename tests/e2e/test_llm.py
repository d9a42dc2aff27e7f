"""`LLM` in a program, as a user would write it, and what a program leaves behind that forgets to close it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine_core.config.errors import ConfigError
from frontend.client import EngineError
from quire import LLM, SamplingParams
from tests.e2e.server import DEMO_MODEL, wait_for_end

PROMPTS = ["The list", "A function", "Return the", "If the file"]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(str(DEMO_MODEL), num_gpu_blocks_override=400, max_num_waiting=8) as llm:
        yield llm


def texts(llm: LLM, *arguments: object) -> list[str]:
    return [output.outputs[0].text for output in llm.generate(*arguments, use_tqdm=False)]  # type: ignore[arg-type]


@pytest.mark.slow
def test_prompts_in_every_form(llm: LLM) -> None:
    ids = llm.tokenizer.encode(PROMPTS[0], add_special_tokens=True)
    expected = texts(llm, PROMPTS[0], GREEDY)
    assert len(expected) == 1
    assert expected[0]
    for prompts in (ids, [ids], [PROMPTS[0]], [{"prompt": PROMPTS[0]}], {"prompt_token_ids": ids}):
        assert texts(llm, prompts, GREEDY) == expected
    assert texts(llm, [], GREEDY) == []


@pytest.mark.slow
def test_the_tokenizers_end_token_ends_an_answer(tmp_path: Path) -> None:
    """Where config.json and generation_config.json name another one, as some published fine-tunes do."""
    folder = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, folder)
    for name in ("config.json", "generation_config.json"):
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**config, "eos_token_id": 1}))
    with LLM(str(folder), num_gpu_blocks_override=400) as llm:
        end = llm.tokenizer.encode("<|end|>", add_special_tokens=False)
        message = {"role": "user", "content": "What does os.path.join do?"}
        (output,) = llm.chat([message], SamplingParams(temperature=0, max_tokens=80), use_tqdm=False)
    answer = output.outputs[0]
    assert answer.finish_reason == "stop"
    assert answer.token_ids[-1:] == end
    assert answer.token_ids.count(end[0]) == 1


def test_outputs_come_in_order_with_their_figures(llm: LLM) -> None:
    params = [SamplingParams(temperature=0, max_tokens=4 + i, ignore_eos=True) for i in range(len(PROMPTS))]
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    for i, (prompt, output) in enumerate(zip(PROMPTS, outputs, strict=True)):
        answer = output.outputs[0]
        assert output.prompt == prompt
        assert output.prompt_token_ids == llm.tokenizer.encode(prompt, add_special_tokens=True)
        assert (len(answer.token_ids), answer.finish_reason, answer.logprobs) == (4 + i, "length", None)
        assert output.metrics is not None
        assert output.metrics.num_output_tokens == 4 + i


def test_prompts_with_their_log_probabilities(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1, n=2)
    for output in llm.generate(PROMPTS, params, use_tqdm=False):
        entries = output.prompt_logprobs
        assert entries is not None
        assert entries[0] is None
        for token_id, entry in zip(output.prompt_token_ids[1:], entries[1:], strict=True):
            assert entry is not None
            assert entry[token_id].decoded_token == llm.tokenizer.token_text(token_id)
            assert max(entry.values(), key=lambda value: value.logprob).rank == 1


def test_more_prompts_than_may_wait(llm: LLM) -> None:
    short = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    assert len(texts(llm, PROMPTS * 20, short)) == 80


def test_several_answers_to_a_prompt(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=7, max_tokens=8, ignore_eos=True)
    first, second = (llm.generate("The list", params, use_tqdm=False)[0].outputs for _ in range(2))
    assert [answer.index for answer in first] == [0, 1, 2]
    assert len({answer.text for answer in first}) > 1
    assert first == second


def test_stop_strings_and_logprobs(llm: LLM) -> None:
    text = texts(llm, "The list", GREEDY)[0]
    stop = text[len(text) // 2 :][:2]
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, stop=stop, logprobs=2)
    answer = llm.generate("The list", params, use_tqdm=False)[0].outputs[0]
    assert (answer.text, answer.finish_reason, answer.stop_reason) == (text[: text.index(stop)], "stop", stop)
    assert answer.logprobs is not None
    assert [entry.token_id for entry in answer.logprobs] == answer.token_ids


def test_chat(llm: LLM) -> None:
    conversation = [{"role": "user", "content": "What is a list?"}]
    one = llm.chat(conversation, GREEDY, use_tqdm=False)
    two = llm.chat([conversation, conversation], GREEDY, use_tqdm=False)
    assert [output.outputs[0].text for output in two] == [one[0].outputs[0].text] * 2
    for wrong in ([], [{"role": "nobody", "content": "Who?"}], [{"role": "user", "content": 5}]):
        with pytest.raises(ValueError, match="messages"):
            llm.chat(wrong, GREEDY, use_tqdm=False)


@pytest.mark.slow
def test_prompts_under_different_salts_share_nothing(llm: LLM) -> None:
    prompt = list(range(20, 90))

    def num_cached(salt: str | None) -> int:
        return llm.generate([prompt], GREEDY, use_tqdm=False, cache_salt=salt)[0].num_cached_tokens

    assert [num_cached(salt) for salt in ("a", "a", "b", None, "b", None)] == [0, 64, 0, 0, 64, 64]
    with pytest.raises(ValueError, match="cache_salt must have at most 256 characters"):
        num_cached("x" * 257)


@pytest.mark.slow
def test_the_prefix_cache_can_be_forgotten(llm: LLM) -> None:
    prompt = list(range(30, 95))

    def num_cached(params: SamplingParams = GREEDY) -> int:
        return llm.generate([prompt], params, use_tqdm=False)[0].num_cached_tokens

    assert [num_cached(), num_cached()] == [0, 64]
    text = llm.generate([prompt], GREEDY, use_tqdm=False)[0].outputs[0].text
    stopped = SamplingParams(temperature=0, max_tokens=12, stop=text[2])
    assert num_cached(stopped) == 64, "also where a stop string ends the answer"
    assert llm.reset_prefix_cache() >= 4
    assert llm.reset_prefix_cache() == 0
    assert [num_cached(), num_cached()] == [0, 64]


def test_what_is_refused_before_anything_runs(llm: LLM) -> None:
    for prompts, params, reason in (
        ([[]], GREEDY, "at least one token"),
        ([5] * 3000, GREEDY, "3000 tokens and max_tokens is 12; the context holds 2048"),
        ([5] * 1000, SamplingParams(max_tokens=1049), "1000 tokens and max_tokens is 1049; the context holds 2048"),
        ([99999], GREEDY, "token id 99999"),
        (PROMPTS, [GREEDY], "4 prompts and 1 sampling_params"),
    ):
        with pytest.raises(ValueError, match=reason):
            llm.generate(prompts, params, use_tqdm=False)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n must be from 1"):
        SamplingParams(n=0)
    with pytest.raises(ValueError, match="temperature"):
        SamplingParams(temperature=-1)


def test_settings_are_those_of_the_server() -> None:
    with pytest.raises(ConfigError, match="no setting 'port'"):
        LLM(str(DEMO_MODEL), port=1)
    with pytest.raises(ConfigError, match="no setting 'modle'"):
        LLM(str(DEMO_MODEL), modle=1)
    with pytest.raises(ConfigError, match="There is no model folder"):
        LLM("/nowhere")


PROGRAM = """
import os, sys
from quire import LLM, SamplingParams
llm = LLM(sys.argv[1])
print(llm.generate("The list", SamplingParams(max_tokens=3, ignore_eos=True))[0].outputs[0].finish_reason, flush=True)
{end}
"""


def run_program(end: str, temp: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM.format(end=end), str(DEMO_MODEL)],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(temp)},
        timeout=120,
    )


def processes_of(temp: Path) -> list[int]:
    """Processes whose command line names a run directory in `temp`."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"{temp}/quire-".encode() in file.read_bytes():
                found.append(int(file.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture
def temp() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="q", dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["", "llm.close(); llm.close()", "raise SystemExit(0)", "del llm"])
def test_a_program_leaves_nothing(temp: Path, end: str) -> None:
    result = run_program(end, temp)
    assert (result.returncode, result.stdout) == (0, "length\n"), result.stderr
    assert processes_of(temp) == []
    assert list(temp.iterdir()) == []


@pytest.mark.slow
def test_a_killed_program_leaves_no_process(temp: Path) -> None:
    result = run_program("os.kill(os.getpid(), 9)", temp)
    assert result.returncode == -signal.SIGKILL
    wait_for_end(processes_of(temp))


@pytest.mark.slow
def test_a_dead_engine_is_one_error(temp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(temp))
    with LLM(str(DEMO_MODEL), num_gpu_blocks_override=200) as llm:
        worker = next(pid for pid in processes_of(temp) if b"gpu_workers" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(EngineError):
            llm.generate(PROMPTS, SamplingParams(max_tokens=500, ignore_eos=True), use_tqdm=False)
    assert processes_of(temp) == []
    assert list(temp.iterdir()) == []
