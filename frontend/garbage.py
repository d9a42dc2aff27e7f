"""When Python's collector of reference cycles runs in a frontend: while no request is open.

By itself it runs after so many allocations, so in the middle of answers: 97 ms for one with 128 choices and their
log-probabilities. Requests make no cycles (a test looks for them), so counting references frees all that they leave.
"""

import gc

FEWEST_NEW_OBJECTS = 1_000
"""An idle server looks for garbage when so many objects have come to stay."""
MOST_NEW_OBJECTS = 1_000_000
"""A server that is never idle collects when this many have come to stay: some hundred megabytes, which are a fault."""


def hold() -> None:
    """From now on only `collect` collects. Nothing looks at what is there already: modules, tokenizer, templates."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(MOST_NEW_OBJECTS, 1, 1)


def collect() -> None:
    """To be called when idle."""
    if gc.get_count()[0] >= FEWEST_NEW_OBJECTS:
        gc.collect()
