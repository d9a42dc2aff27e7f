"""Sharding of fused weights over ranks, and rotary tables against transformers'."""

import dataclasses

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from engine_core.config.errors import ConfigError
from engine_core.config.layer_groups import LayerGroup, LayerGroups
from engine_core.config.rope import RopeConfig
from engine_core.config.stages import Stage
from gpu_workers.layers.build import BuildContext, ShapeMismatch
from gpu_workers.layers.linear import Linear, MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from gpu_workers.layers.rotary import inverse_frequencies
from gpu_workers.operations import load_operations
from gpu_workers.quantization import load_linear_method
from tests.gpu_workers.small_models import LLAMA3_ROPE

BUILD = BuildContext(
    dtype=torch.float32,
    device=torch.device("cpu"),
    operations=load_operations("cpu"),
    linear_method=load_linear_method(None),
    layer_groups=LayerGroups((LayerGroup((0,), 0),), 1),
    stage=Stage.whole(1),
)


def rank(tp_rank: int, tp_size: int) -> BuildContext:
    return dataclasses.replace(BUILD, tp_rank=tp_rank, tp_size=tp_size)


def fill(layer: Linear, **tensors: torch.Tensor) -> Linear:
    """Loads shards by name ("0" is shard 0, "whole" is None) into weight and bias, then finishes."""
    for name, tensor in tensors.items():
        kind, _, shard = name.partition("_")
        parameter = getattr(layer, kind)
        target, source = parameter.weight_loader(parameter, tensor, {"whole": None, "0": 0, "1": 1}.get(shard, shard))
        target.copy_(source)
    layer.finish_loading()
    return layer


@pytest.mark.parametrize("tp_size", [1, 2, 4])
def test_the_ranks_together_compute_what_one_does(tp_size: int) -> None:
    """A gated layer: column-parallel halves, then row-parallel parts that sum up; the bias is added once."""
    torch.manual_seed(0)
    gate, up, down, bias = torch.randn(8, 12), torch.randn(8, 12), torch.randn(5, 8), torch.randn(5)
    x = torch.randn(3, 12)
    total = torch.zeros(3, 5)
    for r in range(tp_size):
        build = rank(r, tp_size)
        merged = fill(MergedColumnParallelLinear(12, (8, 8), False, build), weight_0=gate, weight_1=up)
        row = fill(RowParallelLinear(8, 5, True, build), weight_whole=down, bias_whole=bias)
        gated, lifted = merged(x).chunk(2, -1)
        total += row(gated * lifted)
        torch.testing.assert_close(merged.act_and_mul(x, "silu"), torch.nn.functional.silu(gated) * lifted)
    torch.testing.assert_close(total, (x @ gate.T * (x @ up.T)) @ down.T + bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("tp_size", "num_kv_heads"), [(1, 2), (2, 2), (4, 2), (4, 1)])
def test_qkv_is_split_by_heads_and_scarce_kv_heads_are_repeated(tp_size: int, num_kv_heads: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(4 * 3, 6), torch.randn(num_kv_heads * 3, 6), torch.randn(num_kv_heads * 3, 6)
    x = torch.randn(2, 6)
    for r in range(tp_size):
        layer = QKVParallelLinear(6, 3, 4, num_kv_heads, False, rank(r, tp_size))
        sizes = [n * 3 for n in (layer.num_heads, layer.num_kv_heads, layer.num_kv_heads)]
        fill(layer, weight_q=q, weight_k=k, weight_v=v)
        heads = slice(r * sizes[0], (r + 1) * sizes[0])
        first_kv = r * num_kv_heads // tp_size * 3
        wanted = [x @ q[heads].T, *(x @ w[first_kv : first_kv + sizes[1]].T for w in (k, v))]
        torch.testing.assert_close(layer(x), torch.cat(wanted, -1), rtol=1e-4, atol=1e-4)


def test_shapes_must_match_exactly() -> None:
    layer = MergedColumnParallelLinear(12, (8, 4), False, BUILD)
    for shape in ((8, 12), (4, 11), (1, 12), (4,)):
        with pytest.raises(ShapeMismatch, match="shape"):
            layer.weight.weight_loader(layer.weight, torch.zeros(shape), 1)  # type: ignore[operator, union-attr]


def test_unknown_methods_and_devices_are_named() -> None:
    with pytest.raises(ConfigError, match="quantization method abc"):
        load_linear_method("abc")
    with pytest.raises(ConfigError, match="device tpu"):
        load_operations("tpu")


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "default", "rope_theta": 500.0},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        LLAMA3_ROPE,
    ],
    ids=["default", "linear", "llama3"],
)
def test_frequencies_are_those_of_transformers(parameters: dict[str, float]) -> None:
    config = LlamaConfig(hidden_size=64, num_attention_heads=2, head_dim=32, rope_parameters=dict(parameters))
    wanted = LlamaRotaryEmbedding(config).inv_freq
    ours = {name.removeprefix("rope_"): value for name, value in parameters.items() if name != "rope_type"}
    got = inverse_frequencies(32, RopeConfig(rope_type=str(parameters["rope_type"]), **ours))
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=0)
