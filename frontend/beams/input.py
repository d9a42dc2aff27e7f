"""From a request to the parameters of its beam search, checked."""

from frontend.beams.search import BeamParams, EarlyStopping
from frontend.errors import bad_request
from frontend.input_processor import Limits
from frontend.protocol.common import GenerationRequest
from frontend.protocol.unsupported import refuse_beside_beams


def beam_params(
    request: GenerationRequest, num_beams: int, max_tokens: int, limits: Limits, *, has_grammar: bool
) -> BeamParams:
    """Raises a 400 for what beam search would not heed, and for what is out of range. `has_grammar`: whether the answer
    is bound to something."""
    refuse_beside_beams(request)
    if has_grammar:
        raise bad_request(
            "use_beam_search must not come with what binds the answer: a format, or tools that are strict, forced or "
            "allowed by name.",
            "use_beam_search",
        )
    if not isinstance(request.early_stopping, bool | None) and request.early_stopping != "never":
        raise bad_request("early_stopping must be true, false or 'never'.", "early_stopping")
    early_stopping: EarlyStopping = "never" if request.early_stopping == "never" else bool(request.early_stopping)
    eos = () if request.ignore_eos else limits.eos_token_ids
    try:
        return BeamParams(
            width=num_beams,
            max_tokens=max_tokens,
            eos_token_ids=tuple(dict.fromkeys((*eos, *(request.stop_token_ids or ())))),
            length_penalty=1.0 if request.length_penalty is None else request.length_penalty,
            early_stopping=early_stopping,
        )
    except ValueError as error:
        is_penalty = str(error).startswith("length_penalty")
        raise bad_request(str(error), "length_penalty" if is_penalty else "n") from error
