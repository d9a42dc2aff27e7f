"""Fills a model's parameters from mapped safetensors files, or with made-up numbers.

Every parameter is loaded exactly once and every tensor of the checkpoint is used, but for those of other stages: a
checkpoint that does not fit the model is refused by name instead of serving nonsense.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from engine_core.config.checkpoint import read_header, weight_files
from engine_core.config.errors import ConfigError
from gpu_workers.layers.build import Placement, ShapeMismatch
from gpu_workers.layers.decoder import CausalLM
from gpu_workers.weight_copier import make_copier

ProgressCallback = Callable[[int, int], None]
"""Called with what is done and what there is in all: bytes of weights, steps of the warm-up."""

_COMPUTED = ("rotary_emb.inv_freq",)
"""Endings of tensors that old checkpoints carry and that are computed here."""


def load_weights(model: CausalLM, path: Path, progress: ProgressCallback) -> None:
    """Loads the checkpoint in the folder `path`. Raises `ConfigError` with one sentence when it does not fit."""
    _fill_from_files(model, path, progress)
    _finish(model)


def _fill_from_files(model: CausalLM, path: Path, progress: ProgressCallback) -> None:
    headers = {  # all checked before the first byte is copied
        file: {name: tensor for name, tensor in read_header(file).items() if model.loads(name)}
        for file in weight_files(path)
    }
    total = sum(tensor.num_bytes for header in headers.values() for tensor in header.values())
    parameters = dict(model.named_parameters())
    first_names = {id(parameter): name for name, parameter in parameters.items()}
    tied = {name: first_names[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}
    stored = {name for header in headers.values() for name in header}
    missing = {(id(p), shard): name for name, p in parameters.items() for shard in getattr(p, "shards", (None,))}
    copier = make_copier(next(model.parameters()).device)
    done = 0
    progress(0, total)
    for file, header in headers.items():
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in header:
                    # A tied model's stored copy of its embedding, and what is computed here, are left where they are.
                    first_name = tied.get(name, name)
                    is_copy = first_name != name and first_name in stored
                    if not is_copy and not name.endswith(_COMPUTED):
                        target = _target(first_name, model.FUSED)
                        tensor = tensors.get_tensor(name)
                        copier.copy(*_place(parameters, missing, target, tensor, f"{file}: {name}"))
                    done += header[name].num_bytes
                    progress(done, total)
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{file} cannot be read: {str(error).splitlines()[0]}.") from error
    if missing:
        name, shard = next((name, shard) for (_, shard), name in missing.items())
        part = "" if shard is None else f" (its part {shard})"
        raise ConfigError(f"{path} is incomplete: it has no weights for {name}{part}.")
    copier.finish()


def _place(
    parameters: dict[str, nn.Parameter],
    missing: dict[tuple[int, object], str],
    target: tuple[str, object],
    tensor: torch.Tensor,
    origin: str,
) -> Placement:
    """Where in which parameter a tensor goes; that part of it is then no longer `missing`."""
    name, shard = target
    parameter = parameters.get(name)
    if parameter is None:
        raise ConfigError(f"{origin} has no place in a model of this architecture and config.json.")
    if (id(parameter), shard) not in missing:
        raise ConfigError(f"{origin} is there a second time.")
    try:
        placement: Placement = parameter.weight_loader(parameter, tensor, shard)  # type: ignore[attr-defined]
    except ShapeMismatch as error:
        raise ConfigError(f"{origin} {error}.") from None
    del missing[id(parameter), shard]
    return placement


def _target(name: str, fused: dict[str, tuple[str, object]]) -> tuple[str, object]:
    """The parameter's name here and the shard, for a tensor's name in the checkpoint."""
    parts = name.split(".")
    if len(parts) >= 2 and parts[-2] in fused:
        module, shard = fused[parts[-2]]
        return ".".join([*parts[:-2], module, parts[-1]]), shard
    return name, None


@torch.no_grad()
def fill_dummy_weights(model: nn.Module, seed: int, progress: ProgressCallback) -> None:
    """Random weights of a plausible size, made on the device: speed can be measured without a checkpoint. The same seed
    gives the same weights on the same kind of device, in the same dtype."""
    _fill_with_noise(model, seed, progress)
    _finish(model)


def _fill_with_noise(model: nn.Module, seed: int, progress: ProgressCallback) -> None:
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed & (2**63 - 1))
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    done = 0
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and name.endswith("weight"):
            parameter.fill_(1.0)  # norms
        else:
            parameter.normal_(0.0, 0.02, generator=generator)
        done += parameter.numel() * parameter.element_size()
        progress(done, total)
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # other streams than this one will read them


def _finish(model: nn.Module) -> None:
    """Lets each layer that wants to rearrange its complete weights do so. Whoever filled them has returned and holds
    none any longer: a layer's loaded weight goes as soon as it is packed, and there is never a second copy of all."""
    for module in model.modules():
        finish = getattr(module, "finish_loading", None)
        if finish is not None:
            finish()
