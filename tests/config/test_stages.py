"""How layers are divided among pipeline stages."""

import pytest

from engine_core.config.errors import ConfigError
from engine_core.config.stages import Stage, split_layers


@pytest.mark.parametrize("num_layers", [1, 2, 3, 7, 36])
def test_stages_have_all_layers_once_and_differ_by_one_at_most(num_layers: int) -> None:
    for num_stages in range(1, num_layers + 1):
        stages = split_layers(num_layers, num_stages)
        assert [layer for stage in stages for layer in stage.layers] == list(range(num_layers))
        lengths = [len(stage.layers) for stage in stages]
        assert max(lengths) - min(lengths) <= 1
        assert lengths == sorted(lengths, reverse=True)
        assert [stage.has_embedding for stage in stages] == [True] + [False] * (num_stages - 1)
        assert [stage.has_head for stage in stages] == [False] * (num_stages - 1) + [True]
    assert split_layers(num_layers, 1) == (Stage.whole(num_layers),)


def test_a_stage_without_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"2 layers cannot be split into 3 stages.*; 2 stages would do\."):
        split_layers(2, 3)
