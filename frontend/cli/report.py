"""The start-up report: what was resolved and what it will cost, on one screen."""

from engine_core.config.engine_config import EngineConfig, SchedulerConfig
from engine_core.planning.memory_plan import MemoryPlan, format_bytes
from engine_core.planning.model_memory import num_parameters
from frontend.cli.resolve import Resolved
from frontend.version import quire_version

_BAR_WIDTH = 24


def format_report(resolved: Resolved) -> str:
    """Settings, then the memory plan, as text for a terminal of 80 columns and more."""
    first = headline(resolved.frontend.served_model_names[0], resolved.engine, resolved.plan)
    return "\n".join([first, "", *_settings(resolved), "", *memory_lines(resolved.plan), ""])


def headline(name: str, engine: EngineConfig, plan: MemoryPlan) -> str:
    """Which model on what, in one line."""
    model, num_ranks = engine.model, plan.tensor_parallel_size
    return (
        f"Quire {quire_version()} · {name} · "
        f"{model.architecture}, {_count(num_parameters(model))} parameters, {engine.dtype} "
        f"on {f'{num_ranks} x ' if num_ranks > 1 else ''}{plan.device.name}"
    )


def _settings(resolved: Resolved) -> list[str]:
    engine, frontend = resolved.engine, resolved.frontend
    scheduler = engine.scheduler
    sampling = ", ".join(f"{name} {value:g}" for name, value in frontend.default_sampling.items())
    rows = [
        ("model", engine.model.path),
        ("served as", ", ".join(frontend.served_model_names)),
        ("context", f"{scheduler.max_model_len:,} tokens (model: {engine.model.max_position_embeddings:,})"),
        ("per step", f"{scheduler.max_num_seqs:,} requests, {scheduler.max_num_batched_tokens:,} tokens"),
        ("waiting", f"{scheduler.max_num_waiting:,} requests, then 429; {_policy(scheduler)}"),
        ("prefix caching", "on" if engine.cache.enable_prefix_caching else "off"),
        ("sampling", sampling or "the API's defaults"),
        (
            "formats",
            f"tool calls {frontend.tool_call_parser or 'none'}, reasoning {frontend.reasoning_parser or 'none'}",
        ),
        ("ends at", ", ".join(f"token {eos}" for eos in engine.model.eos_token_ids) or "no token: by length alone"),
        ("seed", str(engine.seed)),
        (
            "frontends",
            f"{frontend.num_frontends} on {frontend.host}, bodies up to {format_bytes(frontend.max_body_bytes)}",
        ),
        ("on SIGTERM", f"up to {frontend.drain_timeout:g} s for running requests"),
        ("hanging", f"after {frontend.hang_timeout:g} s of silence" if frontend.hang_timeout else "never"),
    ]
    extras = [
        ("template", "from --chat-template" if frontend.chat_template is not None else ""),
        ("requests", "unknown fields are refused" if frontend.strict_requests else ""),
        ("weights", "random (--load-format dummy)" if engine.load_format == "dummy" else ""),
        ("graphs", "off" if engine.enforce_eager else ""),
        ("threads", str(engine.num_threads or "")),
        ("responses", f"kept in {frontend.response_store}" if frontend.response_store else ""),
        ("timeline", engine.trace_file or ""),
        *(("ignored", f"{', '.join(keys)} of {file}") for file, keys in resolved.ignored.items()),
    ]
    rows += [(name, value) for name, value in extras if value]
    return [f"  {name:<15}{value}" for name, value in rows]


def _policy(scheduler: SchedulerConfig) -> str:
    if scheduler.scheduling_policy == "priority":
        return f"by priority, {scheduler.priority_ageing_rate:g} levels better for each second of waiting"
    return {"fcfs": "first come first served", "fair": "fair share by API key"}[scheduler.scheduling_policy]


def memory_lines(plan: MemoryPlan) -> list[str]:
    """The memory plan of one device."""
    worker = plan.worker
    title = "Memory plan" if plan.tensor_parallel_size == 1 else "Each device"
    rows = [
        ("weights", plan.weight_bytes, ""),
        ("activations", worker.activation_bytes, "at most, in one step"),
        ("sampler", worker.sampler_bytes, "logits"),
        ("buffers", worker.buffer_bytes, "positions, attention"),
        ("rows", worker.row_bytes, "block tables and sampling parameters"),
        ("penalties", worker.penalty_bytes, "token counts"),
        *([("graphs", worker.graph_bytes, "an estimate")] if worker.graph_bytes else []),
        ("libraries", worker.runtime_bytes, "an estimate"),
        ("KV cache", plan.kv_cache_bytes, f"{plan.num_blocks:,} blocks of {plan.kv_layout.block_size} tokens"),
    ]
    total = plan.fixed_bytes + plan.kv_cache_bytes
    share = total / plan.device.available
    filled = min(_BAR_WIDTH, round(share * _BAR_WIDTH))
    return [
        f"  {title:<15}{'█' * filled}{'░' * (_BAR_WIDTH - filled)}  "
        f"{format_bytes(total)} of {format_bytes(plan.device.available)} free",
        *(f"    {name:<13}{format_bytes(size):>10}  {note}".rstrip() for name, size, note in rows),
        f"  Capacity       {plan.num_kv_tokens:,} tokens at {format_bytes(plan.kv_bytes_per_token)} each: "
        f"{plan.max_concurrency:,.1f} requests of {plan.max_model_len:,} tokens at once",
        *_group_lines(plan),
        *_host_tier(plan),
    ]


def _host_tier(plan: MemoryPlan) -> list[str]:
    if not plan.num_host_blocks:
        return []
    return [
        f"  Host tier      {format_bytes(plan.host_bytes)} of the machine's memory: {plan.num_host_blocks:,} blocks, "
        f"{plan.num_host_tokens:,} tokens"
    ]


def _group_lines(plan: MemoryPlan) -> list[str]:
    """The layers by what they see, where that is not everything for all of them."""
    groups = plan.groups
    lines = []
    for window in dict.fromkeys(groups.windows):
        if not any(groups.windows):
            break
        kind = [group for group in groups.groups if group.sliding_window == window]
        num_layers = sum(len(group.layers) for group in kind)
        seen = f"the last {window:,} tokens" if window else "all tokens"
        size = num_layers * plan.kv_layout.token_bytes
        lines.append(
            f"    {num_layers} layers see {seen}: {format_bytes(size)} a token, {len(kind)} block "
            f"table{'s' if len(kind) > 1 else ''} of {groups.layers_per_block} layers"
        )
    return lines


def format_measured(plan: MemoryPlan, free_bytes: int) -> str:
    """What a GPU's memory lost in the start, beside what was planned; `free_bytes` is what is left of it."""
    planned, used = plan.fixed_bytes + plan.kv_cache_bytes, plan.device.available - free_bytes
    return f"  measured       {format_bytes(used)} of GPU memory, {used / planned - 1:+.1%} against the plan"


def _count(number: int) -> str:
    """10432000 -> "10.4 M"."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)
