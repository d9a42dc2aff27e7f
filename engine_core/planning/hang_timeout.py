"""How long a process may be silent before it counts as hanging, where the user did not say: arithmetic on the model.

A worker gives no sign of life inside a step, so the timeout has to exceed the longest step that the configuration
allows: `max_num_batched_tokens` tokens of a prompt at the end of the longest context.

    operations = 2 x parameters x tokens  +  4 x layers x heads x head_dim x tokens x context    (products + attention)
"""

import math

from engine_core.config.engine_config import SchedulerConfig
from engine_core.config.model_config import ModelConfig
from engine_core.planning.model_memory import num_parameters

BASE_SECONDS = 60.0
"""Enough for anything that is not a step on a CPU."""
SLOW_CPU_OPERATIONS_PER_SECOND = 5e9
"""Assumed to be below what any machine reaches on which somebody would wait for an answer."""


def default_hang_timeout(model: ModelConfig, scheduler: SchedulerConfig, device: str) -> float:
    """Seconds. On a GPU the largest step is a matter of seconds and adds nothing."""
    if device != "cpu":
        return BASE_SECONDS
    tokens, context = scheduler.max_num_batched_tokens, scheduler.max_model_len
    attention = 4 * model.num_hidden_layers * model.num_attention_heads * model.head_dim * context
    operations = tokens * (2 * num_parameters(model) + attention)
    return BASE_SECONDS + math.ceil(operations / SLOW_CPU_OPERATIONS_PER_SECOND)
