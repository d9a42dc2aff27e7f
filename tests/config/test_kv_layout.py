"""The layout of the KV cache against figures by hand."""

import math
from pathlib import Path

from engine_core.config.engine_config import CacheConfig, EngineConfig, ParallelConfig, SchedulerConfig
from engine_core.config.kv_layout import KVLayout
from engine_core.config.model_config import load_model_config
from tests.config.models import make_model_folder


def test_shape_and_bytes_agree(tmp_path: Path) -> None:
    layout = KVLayout.of(load_model_config(make_model_folder(tmp_path)), 3, 16, "bfloat16")
    assert layout.cache_shape(10) == (10, 3, 2, 2, 16, 8)
    assert layout.token_bytes == 2 * 2 * 8 * 2
    assert layout.block_bytes == math.prod(layout.cache_shape(1)) * 2


def test_a_rank_has_its_share_of_kv_heads_and_one_at_least(tmp_path: Path) -> None:
    model = load_model_config(make_model_folder(tmp_path))
    scheduler = SchedulerConfig(
        max_num_seqs=2, max_num_batched_tokens=8, max_model_len=32, max_num_waiting=1, max_num_penalty_rows=1
    )
    cache = CacheConfig(block_size=4, num_blocks=9, dtype="float32")
    shapes = {}
    for num_ranks in (1, 2, 4):
        parallel = ParallelConfig(tensor_parallel_size=num_ranks)
        config = EngineConfig(
            model=model, cache=cache, scheduler=scheduler, parallel=parallel, device="cpu", dtype="float32"
        )
        shapes[num_ranks] = config.kv_layout().cache_shape(cache.num_blocks)
    assert shapes == {1: (9, 2, 2, 2, 4, 8), 2: (9, 2, 2, 1, 4, 8), 4: (9, 2, 2, 1, 4, 8)}
