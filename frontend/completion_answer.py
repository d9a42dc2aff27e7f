"""Pieces of text as text completions, whole or in chunks."""

from collections.abc import Iterator, Sequence

from msgspec import UNSET

from frontend.input_processor import Prompt
from frontend.output_processor import OutputPiece, TokenLogprobs
from frontend.prompt_logprobs import by_token_id, text_offsets
from frontend.protocol.common import Usage
from frontend.protocol.completions import Completion, CompletionChoice, CompletionLogprobs
from frontend.streaming import ChunkUsage
from frontend.tokenizer import TextTokenizer


class CompletionAnswer:
    """Writes the answer to one request; id, time and model are the same throughout."""

    def __init__(
        self,
        response_id: str,
        created: int,
        model: str,
        tokenizer: TextTokenizer,
        prompts: Sequence[Prompt],
        num_samples: int,
        *,
        echo: bool,
        logprobs: int | None,
        prompt_logprobs: int | None,
        return_token_ids: bool,
    ) -> None:
        self._id = response_id
        self._created = created
        self._model = model
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._num_samples = num_samples
        self._echo = echo
        self._logprobs = logprobs
        self._prompt_logprobs = prompt_logprobs
        self._return_token_ids = return_token_ids
        self._started: set[int] = set()

    def whole(self, pieces: list[OutputPiece], usage: Usage) -> Completion:
        choices = [self._choice(index, piece) for index, piece in enumerate(pieces)]
        for choice, piece in zip(choices, pieces, strict=True):
            choice.finish_reason, choice.stop_reason = piece.finish_reason, piece.stop_reason
        return self._completion(choices, usage)

    def chunks(self, choice: int, piece: OutputPiece, usage: ChunkUsage) -> Iterator[Completion]:
        """Text first; the finish reason in a chunk of its own, with empty text."""
        if piece.text or choice not in self._started:
            yield self._completion([self._choice(choice, piece)], usage)
            piece = OutputPiece(finish_reason=piece.finish_reason, stop_reason=piece.stop_reason)
        if piece.finish_reason is not None:
            last = self._choice(choice, piece)
            if not piece.logprobs:
                last.logprobs = None
            last.finish_reason, last.stop_reason = piece.finish_reason, piece.stop_reason
            yield self._completion([last], usage)

    def usage_chunk(self, usage: Usage) -> Completion:
        return self._completion([], usage)

    def _completion(self, choices: list[CompletionChoice], usage: ChunkUsage) -> Completion:
        return Completion(id=self._id, created=self._created, model=self._model, choices=choices, usage=usage)

    def _choice(self, index: int, piece: OutputPiece) -> CompletionChoice:
        """The first choice of an index carries the prompt, where the client wants it back."""
        prompt = self._prompts[index // self._num_samples]
        is_first = index not in self._started
        self._started.add(index)
        choice = CompletionChoice(index=index, text=piece.text)
        prompt_text = self._prompt_text(prompt) if self._echo else ""
        if is_first:
            choice.text = prompt_text + piece.text
        if self._logprobs is not None:
            choice.logprobs = self._logprobs_of(piece.logprobs, len(prompt_text))
            if self._echo and is_first:
                self._put_first(choice.logprobs, prompt, prompt_text, piece.prompt_logprobs)
        if self._prompt_logprobs is not None:
            choice.prompt_logprobs = by_token_id(piece.prompt_logprobs, self._prompt_logprobs, self._tokenizer)
        if self._return_token_ids:
            choice.token_ids = piece.token_ids
            choice.prompt_token_ids = list(prompt.token_ids) if is_first else UNSET
        return choice

    def _prompt_text(self, prompt: Prompt) -> str:
        if prompt.text is not None:
            return prompt.text
        return self._tokenizer.decode(list(prompt.token_ids), skip_special_tokens=False)

    def _put_first(
        self, logprobs: CompletionLogprobs, prompt: Prompt, prompt_text: str, tokens: list[TokenLogprobs]
    ) -> None:
        """The prompt's tokens before the output's; nothing says how likely the first one was."""
        text, token_ids = self._tokenizer.token_text, prompt.token_ids
        before = self._logprobs_of(tokens, 0)
        logprobs.tokens[:0] = [text(token_ids[0]), *before.tokens]
        logprobs.token_logprobs[:0] = [None, *before.token_logprobs]
        logprobs.top_logprobs[:0] = [None, *before.top_logprobs]
        logprobs.text_offset[:0] = text_offsets(self._tokenizer, token_ids, prompt_text)

    def _logprobs_of(self, tokens: list[TokenLogprobs], first_offset: int) -> CompletionLogprobs:
        """One entry per token, the one that ended the output included. `first_offset`: where the text begins."""
        text = self._tokenizer.token_text
        return CompletionLogprobs(
            tokens=[text(token.token_id) for token in tokens],
            token_logprobs=[token.logprob for token in tokens],
            # The sampled token is always there: one more than asked for, when it is not among the most likely.
            top_logprobs=[
                {
                    **{text(other): logprob for other, logprob in token.top[: self._logprobs]},
                    text(token.token_id): token.logprob,
                }
                for token in tokens
            ],
            text_offset=[first_offset + token.text_offset for token in tokens],
        )
