"""A model in several stages computes what it computes as a whole, bit for bit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine_core.config.engine_config import EngineConfig
from engine_core.config.errors import ConfigError
from engine_core.config.stages import EMBEDDING, OUTPUT, Stage, split_layers
from engine_core.ipc.step import StepShape
from gpu_workers.forward_context import ForwardContext
from gpu_workers.layers.build import BuildContext
from gpu_workers.layers.decoder import CausalLM, HiddenStates
from gpu_workers.layers.embedding import Embedding, LMHead
from gpu_workers.loader import load_weights
from gpu_workers.models.registry import build_model
from gpu_workers.operations import load_operations
from gpu_workers.quantization import load_linear_method
from gpu_workers.running.rows import Rows
from tests.gpu_workers.small_models import VARIANTS, engine_config, save_model

OPERATIONS = load_operations("cpu")
PROMPT_LENS = (17, 9)
NUM_DECODE_STEPS = 5
BLOCK_SIZE = 4
BLOCKS_OF_ROW = -(-(max(PROMPT_LENS) + NUM_DECODE_STEPS) // BLOCK_SIZE)


def empty_module(config: EngineConfig, stage: Stage) -> CausalLM:
    build = BuildContext(
        dtype=torch.float32,
        device=torch.device("cpu"),
        operations=OPERATIONS,
        linear_method=load_linear_method(None),
        layer_groups=config.layer_groups().of_stage(stage),
        stage=stage,
    )
    return build_model(config.model, config.scheduler.max_model_len, build)


class StageWorker:
    """The model of one stage with its own KV cache."""

    def __init__(self, config: EngineConfig, stage: Stage) -> None:
        model, groups = config.model, config.layer_groups()
        self.module = empty_module(config, stage)
        load_weights(self.module, Path(config.model.path), lambda done, total: None)
        self._rows = Rows(StepShape(**config.step_capacities()), model.vocab_size, 1, OPERATIONS, torch.device("cpu"))
        num_rows = len(PROMPT_LENS)
        tables = torch.arange(len(groups) * num_rows * BLOCKS_OF_ROW, dtype=torch.int32)
        self._tables = tables.view(len(groups), num_rows, BLOCKS_OF_ROW)
        self._rows.rows.block_tables[:, :num_rows, :BLOCKS_OF_ROW] = self._tables
        cache_shape = config.kv_layout(stage).cache_shape(len(tables))
        kv_cache = OPERATIONS.make_kv_cache(cache_shape, torch.float32, torch.device("cpu"))
        group_size = model.num_attention_heads // model.num_key_value_heads
        self._attention = [
            OPERATIONS.PagedAttention(kv_cache, self._rows.rows, self._rows.step, group_size, window, 0)
            for window in groups.windows
        ]

    def context(self, tokens: list[list[int]], starts: list[int]) -> ForwardContext:
        """A step that computes each row's `tokens`, which begin at the positions `starts`. The last token of each row
        is sampled."""
        step, num_rows, counts = self._rows.step, len(tokens), torch.tensor([len(row) for row in tokens])
        num_tokens = int(counts.sum())
        positions = torch.cat(
            [torch.arange(start, start + len(row)) for start, row in zip(starts, tokens, strict=True)]
        )
        rows = torch.arange(num_rows).repeat_interleave(counts)
        step.rows[:num_rows] = torch.arange(num_rows)
        step.query_start_loc[1 : num_rows + 1] = counts.cumsum(0)
        step.seq_lens[:num_rows] = torch.tensor(starts) + counts
        step.input_ids[:num_tokens] = torch.tensor([token for row in tokens for token in row])
        step.positions[:num_tokens] = positions
        blocks = self._tables[:, rows, positions // BLOCK_SIZE]
        step.slot_mapping[:, :num_tokens] = blocks * BLOCK_SIZE + positions % BLOCK_SIZE
        attention = [
            backend.plan([group], num_rows, num_tokens, num_rows == num_tokens, False)[0]
            for group, backend in enumerate(self._attention)
        ]
        return ForwardContext(
            input_ids=step.input_ids[:num_tokens],
            positions=step.positions[:num_tokens],
            logits_indices=step.query_start_loc[1 : num_rows + 1] - 1,
            attention=attention,
        )


@torch.inference_mode()
def all_logits(path: Path, num_stages: int) -> list[torch.Tensor]:
    """Of a prompt in two chunks, then of steps with one token for each row."""
    config = engine_config(path, block_size=BLOCK_SIZE)
    *others, last = [StageWorker(config, stage) for stage in split_layers(config.model.num_hidden_layers, num_stages)]
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(config.model.vocab_size, (n,), generator=generator).tolist() for n in PROMPT_LENS]
    steps = [([row[:6] for row in prompts], [0, 0]), ([row[6:] for row in prompts], [6, 6])]
    found: list[torch.Tensor] = []
    for index in range(2 + NUM_DECODE_STEPS):
        if index >= 2:  # the tokens that the step before has sampled
            tokens = [[token] for token in found[-1].argmax(-1).tolist()]
            steps.append((tokens, [num_tokens + index - 2 for num_tokens in PROMPT_LENS]))
        hidden: HiddenStates | None = None
        for worker in others:
            hidden = worker.module.model(worker.context(*steps[index]), hidden)
        found.append(last.module.logits(last.module.last_hidden(last.context(*steps[index]), hidden)))
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_stages_compute_what_the_whole_model_does(variant: str, tmp_path: Path) -> None:
    save_model(tmp_path, **VARIANTS[variant])
    whole = all_logits(tmp_path, 1)
    assert len({tuple(logits.argmax(-1).tolist()) for logits in whole}) > 1
    for num_stages in (2, 3):
        for ours, wanted in zip(all_logits(tmp_path, num_stages), whole, strict=True):
            assert torch.equal(ours, wanted)


@pytest.mark.parametrize("keep", [(EMBEDDING,), (OUTPUT,), (EMBEDDING, OUTPUT)])
def test_a_tied_matrix_is_on_the_first_and_on_the_last_stage(keep: tuple[str, ...], tmp_path: Path) -> None:
    save_model(tmp_path, tie_word_embeddings=True)
    whole = all_logits(tmp_path, 1)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    matrix = tensors.pop(EMBEDDING)
    save_file({**tensors, **{name: matrix.clone() for name in keep}}, file)
    for ours, wanted in zip(all_logits(tmp_path, 3), whole, strict=True):
        assert torch.equal(ours, wanted)
    first, _, last = [StageWorker(engine_config(tmp_path), stage).module for stage in split_layers(3, 3)]
    assert isinstance(first.model.embed_tokens, Embedding)
    assert first.lm_head is None
    assert last.model.embed_tokens is None
    assert isinstance(last.lm_head, LMHead)


def test_a_stage_has_its_own_parameters_only(tmp_path: Path) -> None:
    save_model(tmp_path)
    config = engine_config(tmp_path)
    held = [{name for name, _ in empty_module(config, stage).named_parameters()} for stage in split_layers(3, 2)]
    assert not held[0] & held[1]
    assert {EMBEDDING, "model.layers.0.mlp.down_proj.weight", "model.layers.1.mlp.down_proj.weight"} <= held[0]
    assert {OUTPUT, "model.norm.weight", "model.layers.2.mlp.down_proj.weight"} <= held[1]


@pytest.mark.parametrize("missing", ["model.layers.2.mlp.up_proj.weight", "model.norm.weight"])
def test_what_another_stage_lacks_is_not_missed_here(missing: str, tmp_path: Path) -> None:
    save_model(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors[missing]
    save_file(tensors, file)
    first, last = split_layers(3, 2)
    StageWorker(engine_config(tmp_path), first)
    with pytest.raises(ConfigError, match="is incomplete"):
        StageWorker(engine_config(tmp_path), last)


def test_a_layer_that_no_stage_has_is_refused_by_each(tmp_path: Path) -> None:
    save_model(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({**load_file(file), "model.layers.3.mlp.up_proj.weight": torch.zeros(80, 48)}, file)
    for stage in split_layers(3, 2):
        with pytest.raises(ConfigError, match=r"layers\.3\.mlp\.up_proj\.weight has no place"):
            StageWorker(engine_config(tmp_path), stage)
