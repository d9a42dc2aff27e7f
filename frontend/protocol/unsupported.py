"""Parameters of other servers that would change the answer and that this one does not have.

To ignore them, as unknown fields are, would give a client something else than it asked for.
"""

from typing import Any

import msgspec

from frontend.errors import bad_request

_SENTENCES = {
    "documents": "documents is not supported: put them into messages.",
    "function_call": "function_call is not supported: use tool_choice.",
    "functions": "functions is not supported: use tools.",
    "web_search_options": "web_search_options is not supported: this server searches nothing.",
}


class UnsupportedFields(msgspec.Struct, kw_only=True):
    """They are known by name so that they are refused and not ignored. None, false and nothing in a list are fine."""

    documents: Any = None
    function_call: Any = None
    functions: Any = None
    web_search_options: Any = None


def refuse_unsupported(request: UnsupportedFields) -> None:
    """Raises a 400 that names the first that is given."""
    for name, sentence in _SENTENCES.items():
        value = getattr(request, name)
        if value is not None and value is not False and value != []:
            raise bad_request(sentence, name)


_BESIDE_BEAMS: dict[str, Any] = {
    "stream": None,
    "min_tokens": 0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "logit_bias": {},
    "stop": [],
    "bad_words": [],
    "allowed_token_ids": None,
    "thinking_token_budget": None,
    "prompt_logprobs": None,
}
"""With what value each of them asks for nothing."""


def refuse_beside_beams(request: msgspec.Struct) -> None:
    """Raises a 400 for what beam search, which looks at plain log-probabilities, would not heed."""
    for name, nothing in _BESIDE_BEAMS.items():
        value = getattr(request, name)
        if value is not None and value is not False and value != nothing:
            raise bad_request(f"use_beam_search must not come with {name}.", "use_beam_search")
