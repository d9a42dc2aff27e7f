"""How a step's room for prompts is divided among those in the middle of theirs and those that could begin.

One after the other is the fastest way through a queue of equal prompts. Where prompts differ, a long one should leave
room for short ones to pass: with `max_num_partial_prefills` above 1 each prompt has an equal part, and what one does
not need goes to the others in policy order.
"""

import numpy as np


def divide(budget: int, rest: np.ndarray, num_joining: int) -> np.ndarray:
    """Tokens for each running prompt, in policy order, of which `rest` (int32 [num_prompts]) are left to compute.

    `num_joining` waiting requests (none if negative) have their parts set aside.
    """
    num_joining = max(0, num_joining)
    budget -= budget * num_joining // (len(rest) + num_joining)
    chunks = np.minimum(rest, budget // len(rest))
    more = rest - chunks
    before = np.cumsum(more) - more
    return (chunks + np.clip(budget - int(chunks.sum()) - before, 0, more)).astype(np.int32)


def part_of_newcomer(budget: int, rest: int, num_places: int) -> int:
    """Tokens for the next waiting prompt: all its `rest` if the budget has room, else a part.

    `num_places` is how many prompts may yet be left in the middle; where there is none it gets nothing.
    """
    if rest <= budget:
        return rest
    return -(-budget // num_places) if num_places > 0 else 0
