"""What the text of a request becomes: a conversation a prompt, a text token ids, a wish for structure a grammar.

All of it may take long, and all of it is done by a model's tokenizer and chat template alone, so that it can be done in
another process.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from engine_core.config.engine_config import FrontendConfig
from frontend.chat_template import ChatTemplate, RequestTemplates, check_kwargs, load_chat_template
from frontend.conversation import template_messages
from frontend.errors import bad_request
from frontend.grammars.request_grammar import RequestGrammar, chat_grammar, plain_grammar
from frontend.grammars.tool_calls import InputGrammar
from frontend.parsers.chat_parser import ParserPlan
from frontend.protocol.chat import ChatCompletionRequest, ChatMessage
from frontend.protocol.structure import StructureFields
from frontend.tokenizer import TextTokenizer
from frontend.tools import callable_tools, template_tools


class Preparer:
    """One model's tokenizer, templates and formats. Holds nothing of a request."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        chat_template: ChatTemplate,
        request_templates: RequestTemplates,
        parsers: ParserPlan,
        max_model_len: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.parsers = parsers
        self.max_model_len = max_model_len
        """Tokens, as `/tokenize` tells it."""
        self._request_templates = request_templates

    @classmethod
    def load(cls, config: FrontendConfig) -> "Preparer":
        """Raises `TokenizerError` with one sentence."""
        tokenizer = TextTokenizer.from_folder(config.model_path, sanitize_control_tokens=config.sanitize_control_tokens)
        chat_template = load_chat_template(
            config.model_path, config.chat_template, tokenizer.special_tokens, tokenizer.control_tokens
        )
        return cls(
            tokenizer,
            chat_template,
            RequestTemplates(chat_template, config.trust_request_chat_template),
            ParserPlan(config.tool_call_parser, config.reasoning_parser),
            config.max_model_len,
        )

    def encode(self, text: str, add_special_tokens: bool) -> bytes:
        """Token ids as int32."""
        return array("i", self.tokenizer.encode(text, add_special_tokens)).tobytes()

    def chat_text(self, request: ChatCompletionRequest) -> str:
        return self.render_chat(
            request.messages,
            tools=template_tools(request.tools, request.tool_choice),
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=bool(request.continue_final_message),
            kwargs=request.template_variables,
            template=request.chat_template,
        )

    def render_chat(
        self,
        messages: list[ChatMessage],
        *,
        tools: list[dict[str, Any]] | None,
        add_generation_prompt: bool | None,
        continue_final_message: bool,
        kwargs: dict[str, Any] | None,
        template: str | None,
    ) -> str:
        """A conversation as the text that the model reads. `template`: the request's own."""
        chat_template = self.chat_template if template is None else self._request_templates.compile(template)
        if add_generation_prompt and continue_final_message:
            raise bad_request(
                "continue_final_message must not be combined with add_generation_prompt.", "continue_final_message"
            )
        plain = template_messages(messages)
        if add_generation_prompt is None:
            add_generation_prompt = not continue_final_message
        return chat_template.render(
            plain,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            kwargs=check_kwargs(kwargs),
        )

    def parsers_for(self, request: ChatCompletionRequest, *, is_bound: bool) -> ParserPlan:
        """A message that is gone on with has its reasoning behind it. `is_bound`: whether the answer has a grammar,
        which lets no model think whose thinking is switched off."""
        parsers = self.parsers.without_reasoning() if request.continue_final_message else self.parsers
        return replace(parsers, is_thinking_off=True) if is_bound and request.is_thinking_off else parsers

    def chat_grammar(
        self, request: ChatCompletionRequest, prompt: str, input_grammars: Mapping[str, InputGrammar]
    ) -> RequestGrammar | None:
        """What the answer to a rendered conversation has to be, if the request says so. `input_grammars`: of tools, by
        their names. Raises a 400."""
        tools = callable_tools(request.tools, request.tool_choice)
        return chat_grammar(
            request,
            tools.rules(request.parallel_tool_calls is not False, input_grammars),
            self.parsers_for(request, is_bound=True),
            prompt,
            self.tokenizer.grammar_token_id,
        )

    def plain_grammar(self, request: StructureFields) -> RequestGrammar | None:
        """The same for what has neither reasoning nor tools."""
        return plain_grammar(request, self.tokenizer.grammar_token_id)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special ones included."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=False)
