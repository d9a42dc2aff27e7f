"""Parameters of other servers that would change the answer and that this one does not have.

To ignore them, as unknown fields are, would give a client something else than it asked for.
"""

from typing import Any

import msgspec

from frontend.errors import bad_request

_SENTENCES = {
    "allowed_token_ids": "allowed_token_ids is not supported: logit_bias of 100 favours tokens.",
    "bad_words": "bad_words is not supported: logit_bias of -100 rules out single tokens.",
    "documents": "documents is not supported: put them into messages.",
    "function_call": "function_call is not supported: use tool_choice.",
    "functions": "functions is not supported: use tools.",
    "prompt_logprobs": "prompt_logprobs is not supported: logprobs gives those of the output.",
    "use_beam_search": "use_beam_search is not supported: use best_of of /v1/completions, or temperature 0.",
    "web_search_options": "web_search_options is not supported: this server searches nothing.",
}


class UnsupportedFields(msgspec.Struct, kw_only=True):
    """They are known by name so that they are refused and not ignored. None, false and nothing in a list are fine."""

    allowed_token_ids: Any = None
    bad_words: Any = None
    documents: Any = None
    function_call: Any = None
    functions: Any = None
    prompt_logprobs: Any = None
    use_beam_search: Any = None
    web_search_options: Any = None


def refuse_unsupported(request: UnsupportedFields) -> None:
    """Raises a 400 that names the first that is given."""
    for name, sentence in _SENTENCES.items():
        value = getattr(request, name)
        if value is not None and value is not False and value != []:
            raise bad_request(sentence, name)
