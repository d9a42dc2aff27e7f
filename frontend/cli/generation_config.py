"""What a generation_config.json recommends: the sampling parameters of requests that name none, and the rest, which is
not applied."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from engine_core.config.errors import ConfigError
from engine_core.config.model_config import read_json_object
from engine_core.ipc.sampling_params import SamplingParams

_NOT_APPLIED: dict[str, object] = {
    "bad_words_ids": [],
    "begin_suppress_tokens": [],
    "diversity_penalty": 0.0,
    "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "exponential_decay_length_penalty": [],
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": 1.0,
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "penalty_alpha": 0.0,
    "sequence_bias": {},
    "stop_strings": [],
    "suppress_tokens": [],
    "top_h": 1.0,
    "typical_p": 1.0,
    "watermarking_config": {},
}
"""Keys beside the defaults below that change what transformers' `generate` puts out, each with the value that changes
nothing."""
_SAMPLING_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def default_sampling(choice: str, folder: Path) -> dict[str, float | int]:
    """The sampling parameters that generation_config.json recommends, checked like those of a request; `choice` is
    --generation-config. Raises `ConfigError`."""
    raw, file = _read(choice, folder)
    values = {name: raw[name] for name in _SAMPLING_DEFAULTS if raw.get(name) is not None}
    if raw.get("max_new_tokens") is not None:
        values["max_tokens"] = raw["max_new_tokens"]
    try:
        msgspec.convert(values, SamplingParams)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file} recommends sampling parameters that cannot be used: {error}.") from None
    return values


def not_applied(choice: str, folder: Path) -> tuple[str, ...]:
    """Keys of generation_config.json that would change what transformers generates and have no effect here."""
    raw, _ = _read(choice, folder)
    return tuple(name for name, neutral in _NOT_APPLIED.items() if raw.get(name) not in (None, neutral))


def _read(choice: str, folder: Path) -> tuple[Mapping[str, Any], Path]:
    """The file's object, empty where nothing is to be read, and its path."""
    file = (folder if choice in ("auto", "vllm") else Path(choice).expanduser()) / "generation_config.json"
    if choice != "vllm" and file.exists():
        return read_json_object(file), file
    if choice in ("auto", "vllm"):
        return {}, file
    raise ConfigError(f"--generation-config {choice}: there is no {file}.")
