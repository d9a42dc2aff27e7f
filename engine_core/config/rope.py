"""Rotary position embeddings as config.json describes them, under the names of transformers 4 and 5, and as Quire
computes them.

transformers 5 writes `rope_parameters`, 4 wrote `rope_scaling` beside `rope_theta`. Where both stand in a file,
`rope_scaling` counts (transformers' modeling_rope_utils.py). A dictionary of RoPE holds nothing but mathematics, so a
name in it that its type does not have is refused.
"""

from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from engine_core.config.errors import ConfigError

Count = Annotated[int, Meta(ge=1, lt=2**31)]
PositiveFloat = Annotated[float, Meta(gt=0, le=1e30)]

_NAMES = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
"""What every type may have."""
_NEEDED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
"""What the types that are supported need beside them."""
_WITHOUT_EFFECT = ("original_max_position_embeddings",)
"""Of types that do not need it."""
LAYER_KINDS = ("full_attention", "sliding_attention")


class RopeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rotary embeddings: plain ("default"), "linear" scaling (Chen et al. 2023) or "llama3" (Llama 3.1's by-frequency
    interpolation)."""

    rope_type: str = "default"
    theta: float = 10000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


class HfRope(msgspec.Struct, kw_only=True):
    """The fields of one RoPE dictionary that matter."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: PositiveFloat | None = None
    partial_rotary_factor: PositiveFloat = 1.0
    factor: PositiveFloat = 1.0
    low_freq_factor: PositiveFloat = 1.0
    high_freq_factor: PositiveFloat = 4.0
    original_max_position_embeddings: Count | None = None


class HfRopes(msgspec.Struct, kw_only=True):
    """What config.json says about RoPE. `rope_parameters` of Gemma 3 has one dictionary for each kind of layer."""

    max_position_embeddings: Count
    original_max_position_embeddings: Count | None = None
    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_theta: PositiveFloat = 10000.0
    rope_local_base_freq: PositiveFloat = 10000.0


def read_rope(hf: HfRopes, file: Path) -> RopeConfig:
    """The one RoPE of all layers. Raises `ConfigError` for what is not supported and for a contradiction."""
    for kind in LAYER_KINDS:
        if kind in (hf.rope_parameters or {}):
            raise ConfigError(
                f"{file}: rope_parameters.{kind} is for models whose kinds of layers differ in RoPE; rope_type and "
                f"rope_theta in rope_parameters itself would do."
            )
    if not hf.rope_scaling:
        return _rope(hf.rope_parameters or {}, "rope_parameters", hf.rope_theta, hf, file)
    rope = _rope(hf.rope_scaling, "rope_scaling", hf.rope_theta, hf, file)
    if hf.rope_parameters:
        other = _rope(hf.rope_parameters, "rope_parameters", hf.rope_theta, hf, file)
        # What transformers 5 wrote before somebody added the other says nothing but theta.
        if other != rope and (other.rope_type, other.theta) != ("default", rope.theta):
            raise ConfigError(f"{file}: rope_parameters and rope_scaling contradict each other; one of them would do.")
    return rope


def read_ropes_by_layer(hf: HfRopes, file: Path) -> tuple[RopeConfig, RopeConfig]:
    """Gemma 3's: of the layers that see all tokens, and of those with a window. Raises `ConfigError` as `read_rope`."""
    given = hf.rope_parameters or {}
    other = next((name for name in given if name not in LAYER_KINDS), None)
    if other is not None:
        raise ConfigError(
            f"{file}: {other[:40]!r} in rope_parameters is not for one kind of layers; full_attention and "
            f"sliding_attention would do."
        )
    for kind, value in given.items():
        if not isinstance(value, dict | None):
            raise ConfigError(f"{file}: rope_parameters.{kind} must be an object.")
    # As in transformers, where rope_scaling has to say `rope_type`: `type` would not change it.
    full = {**(given.get("full_attention") or {"rope_type": "default"}), **(hf.rope_scaling or {})}
    sliding = given.get("sliding_attention") or {}
    return (
        _rope(full, "rope_parameters", hf.rope_theta, hf, file),
        _rope(sliding, "rope_parameters.sliding_attention", hf.rope_local_base_freq, hf, file),
    )


def _rope(raw: dict[str, Any], name: str, theta: float, hf: HfRopes, file: Path) -> RopeConfig:
    """One dictionary, which stands under `name`; `theta` and positions come from beside it where it has none."""
    given = {key: value for key, value in raw.items() if value is not None}
    try:
        rope = msgspec.convert(given, HfRope)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file}: {name}: {str(error).replace(' - at `$.', ' at `')}.") from None
    rope_type = rope.rope_type or rope.type or "default"
    if rope_type not in _NEEDED:
        raise ConfigError(f"{file}: RoPE of type {rope_type[:40]!r} is not supported; default, linear and llama3 are.")
    needed = _NEEDED[rope_type]
    missing = next((key for key in needed if key not in given), None)
    if missing is not None:
        raise ConfigError(f"{file}: {name} of type {rope_type!r} has no {missing}.")
    other = next((key for key in given if key not in (*_NAMES, *needed, *_WITHOUT_EFFECT)), None)
    # A factor of 1 scales nothing.
    if other is not None and not (other == "factor" and rope.factor == 1.0):
        raise ConfigError(
            f"{file}: {other[:40]!r} in {name} is not understood with the type {rope_type!r}; "
            f"{', '.join(['rope_theta', *needed])} would do."
        )
    if rope.partial_rotary_factor != 1.0:
        raise ConfigError(
            f"{file}: {name}.partial_rotary_factor {rope.partial_rotary_factor:g} is not supported; 1.0 would do."
        )
    if rope_type == "llama3" and rope.low_freq_factor >= rope.high_freq_factor:
        raise ConfigError(f"{file}: RoPE's low_freq_factor must be less than its high_freq_factor.")
    config = RopeConfig(rope_type=rope_type, theta=rope.rope_theta or theta)
    if not needed:
        return config
    config = msgspec.structs.replace(config, factor=rope.factor)
    if rope_type != "llama3":
        return config
    # One at the top level goes first, as for Phi 3, whose files have it there.
    original = hf.original_max_position_embeddings or rope.original_max_position_embeddings
    return msgspec.structs.replace(
        config,
        low_freq_factor=rope.low_freq_factor,
        high_freq_factor=rope.high_freq_factor,
        original_max_position_embeddings=original or hf.max_position_embeddings,
    )
