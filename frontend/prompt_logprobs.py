"""How likely a prompt was, in the forms in which protocols answer it."""

from collections.abc import Iterator, Sequence

from frontend.detokenizer import Detokenizer
from frontend.output_processor import TokenLogprobs
from frontend.protocol.common import PromptLogprob
from frontend.tokenizer import TextTokenizer


def by_token_id(
    tokens: Sequence[TokenLogprobs], num_top: int, tokenizer: TextTokenizer
) -> list[dict[int, PromptLogprob] | None]:
    """One entry for each token of the prompt: null for the first, for others the `num_top` most likely tokens in its
    place, most likely first, and the token itself. `tokens`: the prompt's second one and those after it."""
    entries = (
        {
            token_id: PromptLogprob(logprob=logprob, rank=rank, decoded_token=tokenizer.token_text(token_id))
            for token_id, logprob, rank in _ranked(token, num_top)
        }
        for token in tokens
    )
    return [None, *entries]


def text_offsets(tokenizer: TextTokenizer, token_ids: Sequence[int], text: str) -> list[int]:
    """Where the text of each token of a prompt begins in `text`. Tokens that were put before it (BOS) take no room."""
    detokenizer = Detokenizer(tokenizer, (), skip_special_tokens=False)
    offsets, num_chars = [], 0
    for token_id in token_ids:
        offsets.append(num_chars)
        num_chars += len(detokenizer.step(token_id))
    num_before = max(0, num_chars + len(detokenizer.flush()) - len(text))
    return [min(max(0, offset - num_before), len(text)) for offset in offsets]


def _ranked(token: TokenLogprobs, num_top: int) -> Iterator[tuple[int, float, int]]:
    """Token ids with their log-probabilities and ranks."""
    is_among_them = False
    for rank, (token_id, logprob) in enumerate(token.top[:num_top], start=1):
        is_among_them |= token_id == token.token_id
        yield token_id, logprob, rank
    if not is_among_them:
        yield token.token_id, token.logprob, token.rank
