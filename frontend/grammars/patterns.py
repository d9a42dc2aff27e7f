"""What can be known of Lark's terminals without a text: whether one compiles, whether anything fits it.

Asked of llguidance with bounds so low that no answer takes more than some milliseconds, because a frontend asks.
"""

from functools import cache, lru_cache
from typing import Any

CHAR = r"/(.|\n)/"
CHARS = r"/(.|\n)*/"
_NOTHING_FITS = "NoExtensionBias"
"""How llguidance says that a text can neither go on nor end: here, that none can begin."""
_FUEL = 100_000


def problem(expression: str, definitions: str = "") -> str | None:
    """Why a terminal cannot be used, as the end of a sentence; None: it can. `definitions`: of terminals it names."""
    error = _error(expression, definitions)
    return "fits no text" if error is not None and error.startswith(_NOTHING_FITS) else error


def is_empty(expression: str, definitions: str = "") -> bool | None:
    """Whether no text fits a terminal. None: that is too hard to say."""
    error = _error(expression, definitions)
    if error is None:
        return False
    return True if error.startswith(_NOTHING_FITS) else None


@lru_cache(maxsize=4096)
def ascii_of(expression: str) -> frozenset[str] | None:
    """With which characters of ASCII a text of a terminal may begin. None: nothing fits it, or it cannot be used."""
    matcher = _matcher(expression, "")
    mask = matcher.compute_bitmask()
    if matcher.is_error():
        return None
    return frozenset(chr(byte) for byte in range(128) if mask[byte // 8] >> byte % 8 & 1)


@lru_cache(maxsize=4096)
def _error(expression: str, definitions: str) -> str | None:
    matcher = _matcher(expression, definitions)
    if not matcher.is_error():
        matcher.compute_bitmask()
    if not matcher.is_error():
        return None
    message, _, _ = matcher.get_error().partition("\n   1 |")
    return " ".join(message.replace("<non-verbose/>", "").split())


def _matcher(expression: str, definitions: str) -> Any:
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(
        initial_lexer_fuel=_FUEL, step_lexer_fuel=_FUEL, max_lexer_states=1000, verbose_errors=False
    )
    grammar = LLMatcher.grammar_from_lark(f"start: WHOLE\nWHOLE: {expression}\n{definitions}")
    return LLMatcher(_bytes(), grammar, log_level=0, limits=limits)


@cache
def _bytes() -> Any:
    """A vocabulary of single bytes: what fits a terminal does not depend on a model's tokens."""
    from llguidance import LLTokenizer

    return LLTokenizer("byte")
