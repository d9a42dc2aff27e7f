"""The frozen configuration of one engine core and its workers, and of the frontends before it.

Resolved once by `quire serve` (see `frontend/cli/resolve.py`), written as JSON into the run directory, read by every
child process.
"""

from dataclasses import dataclass
from typing import Literal

import msgspec

from engine_core.config.kv_layout import KVLayout
from engine_core.config.layer_groups import BlockDemand, LayerGroups, layer_groups
from engine_core.config.model_config import ModelConfig
from engine_core.config.rank_share import share_of_rank
from engine_core.config.stages import Stage, split_layers

PolicyName = Literal["fcfs", "priority", "fair"]

_SHORT_STEP_NS = 3_000_000
_MIN_SCORED_ROWS = 64
_SCORED_ROWS_STEP = 16
"""Slices begin at addresses that are as well aligned as the whole, so that they need no kernels of their own."""


class _Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class CacheConfig(_Config, frozen=True, kw_only=True):
    """The paged KV cache of one worker group."""

    block_size: int
    """Tokens in a block."""
    num_blocks: int
    dtype: str
    enable_prefix_caching: bool = True
    num_host_blocks: int = 0
    """Blocks that fit into the second tier, in host memory; 0: there is none."""
    prefix_hash_key_file: str | None = None
    """Where replicas that know each other's blocks have their key from; None: a random one for each start."""


class SchedulerConfig(_Config, frozen=True, kw_only=True):
    """What bounds a step and the queue before it."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    max_num_waiting: int
    """Requests that may wait; the next one is refused as overloaded."""
    max_requests_per_share: int | None = None
    """Requests that one share may have at once, waiting and running; None: any number."""
    max_num_penalty_rows: int
    """Rows that may use penalties at the same time: each costs a vector of token counts."""
    max_num_partial_prefills: int = 1
    """Prompts that may be in the middle of being computed at once; a step's room for prompts is divided among them."""
    scheduling_policy: PolicyName = "fcfs"
    priority_ageing_rate: float = 0.1
    """Levels by which a priority improves with each second of waiting."""
    steps_in_flight: int = 3
    """At most; the last of them only while steps are short."""
    mask_timeout: float = 10.0
    """Seconds for which a running request may wait for what its grammar allows next."""

    @property
    def max_scored_rows(self) -> int:
        """Tokens of prompts whose logits exist at once where their log-probabilities are wanted: enough to be worth
        reading the whole projection for."""
        return -(-max(self.max_num_seqs, _MIN_SCORED_ROWS) // _SCORED_ROWS_STEP) * _SCORED_ROWS_STEP

    @property
    def num_slots(self) -> int:
        """Of the rings of plans and results."""
        return self.steps_in_flight + 2

    def most_in_flight(self, step_ns: int) -> int:
        """How many steps may be under way where the one collected last took that long (0: nobody knows).

        The time from a result to the plan that it makes room for bounds the rate of short steps. One step more in
        flight hides it, at the price that a new request or an ended one waits for one step more.
        """
        return self.steps_in_flight - (not 0 < step_ns < _SHORT_STEP_NS)


def block_demand(groups: LayerGroups, block_size: int, scheduler: SchedulerConfig) -> BlockDemand:
    """How many blocks a request takes under `scheduler`, whose steps bound a prompt's chunks."""
    return BlockDemand.of(groups.windows, block_size, scheduler.max_num_batched_tokens)


def step_capacities(
    model: ModelConfig, scheduler: SchedulerConfig, num_groups: int, block_size: int, num_host_blocks: int
) -> dict[str, int]:
    """See `EngineConfig.step_capacities`."""
    return {
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "max_model_len": scheduler.max_model_len,
        "block_size": block_size,
        "num_groups": num_groups,
        "num_host_blocks": num_host_blocks,
        "num_mask_words": -(-model.vocab_size // 32),
    }


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """What one worker has of the model, and where."""

    rank: int
    """Its number in the replica: the ranks of a stage follow each other, stage after stage."""
    tp_rank: int
    """Its number in the stage, whose layers the ranks divide."""
    stage: Stage
    device: int
    """The number of its GPU among those that are visible on the host; means nothing on a CPU."""

    @property
    def publishes(self) -> bool:
        """Whether its results are the replica's: one rank of the stage that computes logits."""
        return self.stage.has_head and self.tp_rank == 0


class ParallelConfig(_Config, frozen=True, kw_only=True):
    """How one model is spread; the names are there from the start, also where there is one of each."""

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1

    @property
    def world_size(self) -> int:
        """Workers of one replica."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    def places(self, num_layers: int, replica: int) -> tuple[WorkerPlace, ...]:
        """Those of a replica's workers by their rank. Replicas share a host, and no worker shares a GPU. Raises
        `ConfigError` where the layers are fewer than the stages."""
        first_device = replica * self.world_size
        return tuple(
            WorkerPlace(rank, rank % self.tensor_parallel_size, stage, first_device + rank)
            for number, stage in enumerate(split_layers(num_layers, self.pipeline_parallel_size))
            for rank in range(number * self.tensor_parallel_size, (number + 1) * self.tensor_parallel_size)
        )


class EngineConfig(_Config, frozen=True, kw_only=True):
    """All that an engine core and its workers need to know."""

    model: ModelConfig
    cache: CacheConfig
    scheduler: SchedulerConfig
    parallel: ParallelConfig = ParallelConfig()
    device: Literal["cpu", "cuda"]
    dtype: str
    """The dtype of weights and activations."""
    load_format: Literal["safetensors", "dummy"] = "safetensors"
    seed: int = 0
    """Seeds dummy weights."""
    enforce_eager: bool = False
    num_threads: int = 0
    """Torch's threads in a CPU worker; 0: chosen from the number of cores."""
    trace_file: str | None = None

    def step_capacities(self) -> dict[str, int]:
        """The arguments of `engine_core.ipc.step.StepShape`, which fixes the layout of plans and results."""
        num_groups, cache = len(self.layer_groups()), self.cache
        return step_capacities(self.model, self.scheduler, num_groups, cache.block_size, cache.num_host_blocks)

    def places(self, replica: int = 0) -> tuple[WorkerPlace, ...]:
        """Where the workers of a replica stand, by their rank."""
        return self.parallel.places(self.model.num_hidden_layers, replica)

    def layer_groups(self) -> LayerGroups:
        """Which of the model's layers share block tables."""
        return layer_groups(self.model, self.scheduler.max_model_len)

    def kv_layout(self, stage: Stage | None = None) -> KVLayout:
        """How each rank's cache is laid out on a stage; None: on one that has all layers."""
        share = share_of_rank(self.model, self.parallel.tensor_parallel_size)
        groups = self.layer_groups() if stage is None else self.layer_groups().of_stage(stage)
        return KVLayout.of(share, groups.layers_per_block, self.cache.block_size, self.cache.dtype)

    def block_demand(self) -> BlockDemand:
        """How many blocks a request takes."""
        return block_demand(self.layer_groups(), self.cache.block_size, self.scheduler)

    def longest_request(self) -> int:
        """Tokens, prompt and output, of the longest request that the cache and the context have room for."""
        return self.block_demand().longest(self.cache.num_blocks, self.scheduler.max_model_len)


class FrontendConfig(_Config, frozen=True, kw_only=True):
    """All that a frontend needs beside the engine's configuration."""

    host: str
    port: int
    num_frontends: int
    served_model_names: tuple[str, ...]
    model_path: str
    chat_template: str | None
    """The template's text, when the user gave another one than the tokenizer's."""
    sanitize_control_tokens: bool = False
    """Whether control tokens in messages, tools and template variables are text."""
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    """Names of formats in frontend/parsers; None: the model's text is content as it is."""
    tells_apart: Literal["nobody", "keys", "addresses"] = "nobody"
    """What makes the shares of the engine: the queue, the policy `fair` and limits tell these apart."""
    separates_prefixes: bool = False
    """Whether requests of different API keys find nothing of each other in the prefix cache."""
    default_sampling: dict[str, float | int]
    """From generation_config.json; a request's own values win."""
    max_body_bytes: int
    strict_requests: bool
    drain_timeout: float
    hang_timeout: float = 0.0
    """Seconds of silence after which the supervisor ends the server; 0: never."""
    max_model_len: int
    max_logprobs: int
    eos_token_ids: tuple[int, ...] = ()
    """The model's own, for what looks for the end of an answer before the engine does (beam search)."""
    api_key_digests: tuple[str, ...] = ()
    """SHA-256, in hex, of the different keys of which a request must have one; empty: no key is wanted."""
    allowed_origins: tuple[str, ...] = ()
    """Web pages of these origins may read answers; `*`: all."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that requests may have in their Host header, beside those of this machine; `*`: all."""
    trust_request_chat_template: bool = False
    """Whether a request may bring its own chat template."""
    response_store: str | None = None
    """Path of the file of stored responses; None: one in the run directory, which goes with it."""


class ServeConfig(_Config, frozen=True, kw_only=True):
    """Everything that was resolved, as it stands in RUN/config.json."""

    engine: EngineConfig
    frontend: FrontendConfig
    run_dir: str

    @property
    def response_store(self) -> str:
        """Where the frontends keep responses."""
        return self.frontend.response_store or f"{self.run_dir}/responses.db"

    def core_endpoint(self, replica: int = 0) -> str:
        """Where clients reach an engine core."""
        return f"ipc://{self.run_dir}/core-{replica}.sock"

    def admin_endpoint(self, replica: int = 0) -> str:
        """Where tools that look at a running engine core reach it; the same protocol, apart from its clients."""
        return f"ipc://{self.run_dir}/admin{f'-{replica}' if replica else ''}.sock"

    def worker_endpoint(self, replica: int, rank: int) -> str:
        """Where an engine core meets one of its workers."""
        return f"ipc://{self.run_dir}/worker-{replica}-{rank}.sock"

    def bell_endpoint(self, replica: int) -> str:
        """Where the worker that publishes rings for results, from the thread that collects them."""
        return f"ipc://{self.run_dir}/bell-{replica}.sock"


def load_serve_config(path: str) -> ServeConfig:
    """What `quire serve` wrote for its children. Raises `msgspec.ValidationError` when it is not that."""
    with open(path, "rb") as file:
        return msgspec.json.decode(file.read(), type=ServeConfig)
