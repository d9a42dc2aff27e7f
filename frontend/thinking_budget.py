"""How a bound on a model's reasoning is said to the engine, which knows tokens only."""

from typing import Any

from engine_core.ipc.sampling_params import MAX_SEQUENCE_TOKENS
from frontend.errors import bad_request
from frontend.parsers.chat_parser import ParserPlan
from frontend.tokenizer import TextTokenizer


def thinking_fields(budget: int, parsers: ParserPlan, prompt: str, tokenizer: TextTokenizer) -> dict[str, Any]:
    """Sampling parameters for an output that continues `prompt`; none where it has no reasoning."""
    markers = parsers.thinking_markers(prompt)
    if markers is None:
        return {}
    start, end = (tokenizer.encode(text, add_special_tokens=False) if text else [] for text in markers)
    if max(len(start), len(end)) > MAX_SEQUENCE_TOKENS:
        raise bad_request(
            "thinking_token_budget is not supported: this model's markers of reasoning are too many tokens.",
            "thinking_token_budget",
        )
    return {
        "thinking_token_budget": budget,
        "thinking_start_token_ids": start,
        "thinking_end_token_ids": end,
    }
