"""The tokenizer: byte-level BPE of 8,192 entries, its special tokens, and the chat template.

Capitals, digits and runs of punctuation stand apart from the space before them, so that a name or a number has the same
tokens in a question and between the quotes of a JSON string: a small model can then copy it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB_SIZE = 8192
BOS, EOS, PAD, END = "<|bos|>", "<|eos|>", "<|pad|>", "<|end|>"
CONTROL_TOKENS = [BOS, EOS, PAD, "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", END]
# Kept by `skip_special_tokens`, because parsers look for them in the text.
VISIBLE_TOKENS = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
RESERVED_TOKENS = [f"<|reserved_{i}|>" for i in range(10)]
ADDED_TOKENS = [*CONTROL_TOKENS, *VISIBLE_TOKENS, *RESERVED_TOKENS]
TOKEN_ID = {token: index for index, token in enumerate(ADDED_TOKENS)}

PIECES = r" ?\p{Ll}+|\p{Lu}\p{Ll}+|\p{Lu}+(?!\p{Ll})|\p{L}+|\p{N}|\n[\n ]*| ?[^\s\p{L}\p{N}]+| +(?= )|\s"

TOOLS_BEFORE = (
    "# Tools\n\nYou may call one or more functions to help with the question. "
    "The functions are described inside <tools></tools>:\n<tools>"
)
TOOLS_AFTER = (
    "\n</tools>\n\nFor each function call, return a JSON object with the name and the arguments inside "
    "<tool_call></tool_call>:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <arguments-object>}\n</tool_call>'
)
THINK_FIRST = "Think before you answer."

CHAT_TEMPLATE = (
    """{%- set thinking = enable_thinking is defined and enable_thinking -%}
{%- set has_system = messages and messages[0].role in ['system', 'developer'] -%}
{{- bos_token -}}
{%- if has_system or tools or thinking -%}
    {{- '<|system|>\\n' -}}
    {%- set sep = namespace(text='') -%}
    {%- if has_system and messages[0].content -%}
        {%- set content = messages[0].content -%}
        {{- content if content is string else content | map(attribute='text') | join -}}
        {%- set sep.text = '\\n\\n' -%}
    {%- endif -%}
    {%- if tools -%}
        {{- sep.text + TOOLS_BEFORE -}}
        {%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}
        {{- TOOLS_AFTER -}}
        {%- set sep.text = '\\n\\n' -%}
    {%- endif -%}
    {%- if thinking -%}{{- sep.text + THINK_FIRST -}}{%- endif -%}
    {{- '<|end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if not (loop.first and has_system) -%}
        {%- if message.content is string -%}
            {%- set content = message.content -%}
        {%- elif message.content -%}
            {%- set content = message.content | map(attribute='text') | join -%}
        {%- else -%}
            {%- set content = '' -%}
        {%- endif -%}
        {%- if message.role == 'tool' -%}
            {{- '<|tool|>\\n<tool_response>\\n' + content + '\\n</tool_response><|end|>\\n' -}}
        {%- elif message.role == 'assistant' -%}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
            {{- '<|assistant|>\\n' + content -}}
            {%- for call in message.tool_calls or [] -%}
                {%- set call = call.function if call.function is defined else call -%}
                {{- '\\n' if content or not loop.first else '' -}}
                {{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' -}}
                {{- call.arguments if call.arguments is string else call.arguments | tojson -}}
                {{- '}\\n</tool_call>' -}}
            {%- endfor -%}
            {{- '<|end|>\\n' -}}
        {%- else -%}
            {%- set role = 'system' if message.role == 'developer' else message.role -%}
            {{- '<|' + role + '|>\\n' + content + '<|end|>\\n' -}}
        {%- endif -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}""".replace("TOOLS_BEFORE", repr(TOOLS_BEFORE))
    .replace("TOOLS_AFTER", repr(TOOLS_AFTER))
    .replace("THINK_FIRST", repr(THINK_FIRST))
)


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Learns the merges; the added tokens take the first ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=ADDED_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=20,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, TOKEN_ID[BOS])]
    )
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes tokenizer.json (compact) and tokenizer_config.json (with the chat template)."""
    folder.mkdir(parents=True, exist_ok=True)
    content = json.loads(tokenizer.to_str())
    for token in content["added_tokens"]:
        token["special"] = token["content"] not in VISIBLE_TOKENS
    # Merges as "a b" strings take two thirds of the room of pairs; every version of the library reads them.
    content["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]]
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": PAD,
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
