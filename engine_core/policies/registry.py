"""The policies by the names that `--scheduling-policy` knows: one line each."""

from collections.abc import Callable

from engine_core.config.engine_config import SchedulerConfig
from engine_core.policies.base import SchedulingPolicy
from engine_core.policies.fair_share import FairShare
from engine_core.policies.fixed_rank import FirstComeFirstServed, PriorityWithAgeing

POLICIES: dict[str, Callable[[SchedulerConfig], SchedulingPolicy]] = {
    "fcfs": lambda config: FirstComeFirstServed(config.max_num_seqs),
    "priority": lambda config: PriorityWithAgeing(config.max_num_seqs, config.priority_ageing_rate),
    "fair": lambda config: FairShare(config.max_num_seqs),
}


def make_policy(config: SchedulerConfig) -> SchedulingPolicy:
    return POLICIES[config.scheduling_policy](config)
