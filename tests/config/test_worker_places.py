"""Where the workers of a replica stand."""

import pytest

from engine_core.config.engine_config import ParallelConfig
from engine_core.config.errors import ConfigError
from engine_core.config.stages import Stage


def test_ranks_follow_each_other_stage_after_stage() -> None:
    parallel = ParallelConfig(tensor_parallel_size=2, pipeline_parallel_size=3)
    places = parallel.places(num_layers=7, replica=0)
    assert [place.rank for place in places] == list(range(parallel.world_size))
    assert [place.tp_rank for place in places] == [0, 1] * 3
    first, middle, last = Stage(0, 2, 7), Stage(3, 4, 7), Stage(5, 6, 7)
    assert [place.stage for place in places] == [first, first, middle, middle, last, last]
    assert [place.rank for place in places if place.publishes] == [4]


@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (4, 1), (1, 4), (2, 2)])
def test_one_worker_of_each_replica_publishes(tensor: int, pipeline: int) -> None:
    parallel = ParallelConfig(tensor_parallel_size=tensor, pipeline_parallel_size=pipeline, data_parallel_size=3)
    replicas = [parallel.places(8, replica) for replica in range(3)]
    for places in replicas:
        (publisher,) = [place for place in places if place.publishes]
        assert publisher.rank == parallel.world_size - tensor
    devices = [place.device for places in replicas for place in places]
    assert devices == list(range(3 * parallel.world_size))


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"2 layers cannot be split into 3 stages"):
        ParallelConfig(pipeline_parallel_size=3).places(2, replica=0)
