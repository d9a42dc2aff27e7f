"""How long the state machines run: 2,000 steps in CI, more where QUIRE_STATE_MACHINE_STEPS says so."""

import os

from hypothesis import HealthCheck, settings

_STEPS_PER_EXAMPLE = 40


def machine_settings() -> settings:
    """Of a machine's test case. Short examples, for faults that hypothesis can shrink to a few steps."""
    num_steps = int(os.environ.get("QUIRE_STATE_MACHINE_STEPS", "2000"))
    return settings(
        max_examples=-(-num_steps // _STEPS_PER_EXAMPLE),
        stateful_step_count=_STEPS_PER_EXAMPLE,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
