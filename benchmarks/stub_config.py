"""The configuration of a frontend before a stub core, for benchmarks and tests."""

from pathlib import Path
from typing import Any

from engine_core.config.engine_config import (
    CacheConfig,
    EngineConfig,
    FrontendConfig,
    SchedulerConfig,
    ServeConfig,
)
from engine_core.config.model_config import ModelConfig


def frontend_config(model_folder: Path, **changes: Any) -> FrontendConfig:
    """One frontend for a model folder with a tokenizer."""
    values: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": 0,
        "num_frontends": 1,
        "served_model_names": ("stub",),
        "model_path": str(model_folder),
        "chat_template": None,
        "default_sampling": {},
        "max_body_bytes": 2**20,
        "strict_requests": False,
        "drain_timeout": 5.0,
        "max_model_len": 2048,
        "max_logprobs": 20,
    }
    return FrontendConfig(**{**values, **changes})


def serve_config(run_dir: Path, frontend: FrontendConfig) -> ServeConfig:
    """The whole of it; of the engine only the endpoint matters."""
    model = ModelConfig(
        architecture="LlamaForCausalLM",
        path=frontend.model_path,
        vocab_size=4096,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=frontend.max_model_len,
    )
    engine = EngineConfig(
        model=model,
        cache=CacheConfig(block_size=16, num_blocks=8, dtype="float32"),
        scheduler=SchedulerConfig(
            max_num_seqs=8,
            max_num_batched_tokens=64,
            max_model_len=frontend.max_model_len,
            max_num_waiting=8,
            max_num_penalty_rows=8,
        ),
        device="cpu",
        dtype="float32",
    )
    return ServeConfig(engine=engine, frontend=frontend, run_dir=str(run_dir))
