"""Grammars as clients write them: Lark, which goes to llguidance, or EBNF."""

import re

from frontend.grammars.client_parts import WrongStructure
from frontend.grammars.ebnf import Ebnf, is_ebnf

_START = re.compile(r"^[ \t]*!?\??start[ \t]*(\[[^\]\n]*\]|\{[^}\n]*\})?[ \t]*:", re.MULTILINE)
_HEAD = re.compile(
    r"^([ \t]*)(\?!|!?\??)([A-Za-z_]\w*)(?:\.-?\d+)?(?=[ \t]*(?:\[[^\]\n]*\]|\{[^}\n]*\})?[ \t]*:)", re.MULTILINE
)
"""A rule's modifiers, name and priority."""


def lark_grammar(grammar: str, where: str) -> str:
    """In Lark as llguidance has it. Raises `WrongStructure`."""
    if is_ebnf(grammar):
        return Ebnf(grammar, where).lark()
    # Modifiers are about trees, and priorities about which one of several is found: neither about what a text may be.
    plain = _HEAD.sub(r"\1\3", grammar.removeprefix("\ufeff"))
    if not _START.search(plain):
        raise WrongStructure(where, "must have a rule 'start' (Lark) or 'root ::=' (EBNF).")
    return plain
