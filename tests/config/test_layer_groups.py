"""Which layers share block tables, for the patterns of published models."""

from pathlib import Path

import msgspec
import pytest

from engine_core.config.layer_groups import LayerGroups, layer_groups
from engine_core.config.model_config import ModelConfig, load_model_config
from engine_core.config.stages import split_layers
from tests.config.models import make_model_folder


@pytest.fixture
def model(tmp_path: Path) -> ModelConfig:
    return load_model_config(make_model_folder(tmp_path))


def groups_of(model: ModelConfig, num_layers: int, sliding: list[int], max_model_len: int = 100) -> LayerGroups:
    changed = msgspec.structs.replace(
        model, num_hidden_layers=num_layers, sliding_window=16, sliding_layers=tuple(sliding)
    )
    return layer_groups(changed, max_model_len)


def test_one_kind_is_one_group(model: ModelConfig) -> None:
    groups = groups_of(model, 5, [])
    assert (groups.windows, groups.layers_per_block) == ((0,), 5)
    assert [groups.place(layer) for layer in range(5)] == [(0, place) for place in range(5)]
    groups = groups_of(model, 5, list(range(5)))
    assert (groups.windows, groups.layers_per_block) == ((16,), 5)


def test_a_window_that_hides_nothing_is_none(model: ModelConfig) -> None:
    assert groups_of(model, 4, [0, 2], max_model_len=16).windows == (0,)
    assert groups_of(model, 4, [0, 2], max_model_len=17).windows == (0, 16)


@pytest.mark.parametrize(
    ("num_layers", "period", "layers_per_block", "num_full", "num_windowed"),
    [
        (42, 2, 21, 1, 1),  # Gemma 2 9B
        (18, 6, 3, 1, 5),  # Gemma 3 270M
        (26, 6, 4, 1, 6),  # Gemma 3 1B: 22 layers with a window, two places stay empty
        (34, 6, 5, 1, 6),  # Gemma 3 4B
        (48, 6, 8, 1, 5),  # Gemma 3 12B
        (62, 6, 10, 1, 6),  # Gemma 3 27B
        (24, 2, 12, 1, 1),
    ],
)
def test_published_patterns(
    model: ModelConfig, num_layers: int, period: int, layers_per_block: int, num_full: int, num_windowed: int
) -> None:
    sliding = [layer for layer in range(num_layers) if (layer + 1) % period]
    groups = groups_of(model, num_layers, sliding)
    assert groups.layers_per_block == layers_per_block
    assert groups.windows == (0,) * num_full + (16,) * num_windowed
    places = [groups.place(layer) for layer in range(num_layers)]
    assert len(set(places)) == num_layers
    assert all(place < layers_per_block for _, place in places)
    assert all((groups.windows[group] > 0) == (layer in sliding) for layer, (group, _) in enumerate(places))
    empty = len(groups) * layers_per_block - num_layers
    assert empty < layers_per_block


@pytest.mark.parametrize(("num_layers", "period", "most"), [(26, 6, 2), (48, 6, 4), (62, 6, 5), (6, 9, 3)])
def test_a_stage_keeps_its_own_layers(model: ModelConfig, num_layers: int, period: int, most: int) -> None:
    groups = groups_of(model, num_layers, [layer for layer in range(num_layers) if (layer + 1) % period])
    stages = split_layers(num_layers, 2)
    parts = [groups.of_stage(stage) for stage in stages]
    assert [part.windows for part in parts] == [groups.windows] * 2
    for stage, part in zip(stages, parts, strict=True):
        places = [part.place(layer) for layer in stage.layers]
        assert len(set(places)) == part.num_layers == len(stage.layers)
        assert [group for group, _ in places] == [groups.place(layer)[0] for layer in stage.layers]
        assert max(place for _, place in places) == part.layers_per_block - 1
    assert [part.layers_per_block for part in parts] == [most, most]
