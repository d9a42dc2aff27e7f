"""Where a folder's chat templates are looked for, and which of them wins: as transformers does."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from frontend.chat_template import load_chat_template
from frontend.text.tokenizer_files import TokenizerError
from tests.frontend.text.tokenizer_folders import Files, byte_level_bpe, configured, write_folder

NAMED = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T {{ tools }}"}]
FILE: Files = {"chat_template.jinja": "FILE ü\r\nlines\n"}
TOOL_FILE: Files = {"additional_chat_templates/tool_use.jinja": "TOOLS {{ tools | length }}"}
CASES: dict[str, tuple[Files, object]] = {
    "in the config": ({}, "CONFIG"),
    "a list": ({}, NAMED),
    "an object": ({}, {"default": "D", "rag": "R"}),
    "a file": (FILE, None),
    "a file before the config": (FILE, "CONFIG"),
    "a file before a list": (FILE, NAMED),
    "more files": ({**FILE, **TOOL_FILE}, "CONFIG"),
    "more files alone": (TOOL_FILE, "CONFIG"),
    "a default among more files": ({**FILE, **TOOL_FILE, "additional_chat_templates/default.jinja": "OTHER"}, NAMED),
    "a file of another kind": ({"additional_chat_templates/notes.txt": "no"}, "CONFIG"),
    "a processor's beside the config": ({"chat_template.json": {"chat_template": "P"}}, "CONFIG"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_sources_are_those_of_transformers(case: tuple[Files, object], tmp_path: Path) -> None:
    files, template = case
    folder = write_folder(tmp_path, {**configured(byte_level_bpe(), chat_template=template), **files})
    theirs = AutoTokenizer.from_pretrained(folder).chat_template
    ours = load_chat_template(str(folder), None, {}).sources
    assert ours == (theirs if isinstance(theirs, dict) else {"default": theirs})


def test_a_processors_template_is_the_last_resort(tmp_path: Path) -> None:
    files = configured(byte_level_bpe()) | {"chat_template.json": {"chat_template": "P"}}
    assert load_chat_template(str(write_folder(tmp_path, files)), None, {}).sources == {"default": "P"}
    assert load_chat_template(str(tmp_path), "GIVEN", {}).sources == {"default": "GIVEN"}


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"additional_chat_templates/tool_use.jinja": "{% if %}"}, "The chat template is not valid: .* .line 1."),
        ({"chat_template.json": {"chat_template": 7}}, "chat_template.json is neither a text nor a list of templates"),
        ({"chat_template.json": []}, "chat_template.json is not a JSON object"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(files: Files, reason: str, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=reason):
        load_chat_template(str(write_folder(tmp_path, files)), None, {})
