"""Outputs of models in all formats, with what must be found in them."""

import json
from dataclasses import dataclass
from typing import Any

TOOLS: dict[str, dict[str, Any]] = {
    "look": {
        "type": "object",
        "properties": {
            "place": {"type": "string"},
            "days": {"type": "integer"},
            "deep": {"type": "object"},
            "sure": {"type": "boolean"},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
    },
    "now": {"type": "object", "properties": {}},
}
CITY = {"place": "Köln 🦊"}
NESTED = {"place": 'a "}]" \\ <tool_call>x</tool_call> {[(', "deep": {"a": [{"b": "}"}, []], "c": {}}}


@dataclass(frozen=True)
class Sample:
    """`calls`: names and arguments; `content` is compared exactly."""

    text: str
    calls: tuple[tuple[str, Any], ...] = ()
    content: str = ""
    reasoning: str = ""


def plain(text: str) -> Sample:
    """Malformed: nothing but content, and all of it."""
    return Sample(text, content=text)


def call(name: str, arguments: Any, key: str = "arguments") -> str:
    return json.dumps({"name": name, key: arguments}, ensure_ascii=False)


CITY_CALL, NESTED_CALL, NOW_CALL = call("look", CITY), call("look", NESTED), call("now", {})
TWO = (("look", CITY), ("now", {}))
LINES = {"place": 'a\n\tb "c"'}
LINES_CALL = call("look", LINES).replace("\\n", "\n").replace("\\t", "\t")
"""With control characters in its text as they are."""
NO_CALL = [plain("No call < <t <tool {here} [1] f(x) 🦊 [TOOL <| functools.\n"), plain(""), plain(" \n")]


def tagged(*bodies: str) -> str:
    return "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)


HERMES = [
    Sample(tagged(CITY_CALL), (("look", CITY),)),
    Sample(tagged(NESTED_CALL), (("look", NESTED),)),
    Sample(f"Before 🦊\n{tagged(CITY_CALL, NOW_CALL)}\nafter", TWO, "Before 🦊\n\n\nafter"),
    Sample("<tool_call>" + CITY_CALL, (("look", CITY),)),
    Sample(tagged('{"name": "now"}'), (("now", {}),)),
    Sample(tagged('{"name": "now", "arguments": null}'), (("now", {}),)),
    Sample(tagged(call("look", json.dumps(CITY))), (("look", CITY),)),
    Sample(
        tagged('{"name": "look", "arguments": {"place": "x}}', NOW_CALL),
        (("now", {}),),
        tagged('{"name": "look", "arguments": {"place": "x}}'),
    ),
    Sample(tagged(LINES_CALL), (("look", LINES),)),
    Sample(tagged(call("look", LINES_CALL[29:-1])), (("look", LINES),)),
    Sample(f"<tool_call>\n{CITY_CALL}\n<tool_call>\n{NOW_CALL}\n</tool_call>", TWO),
    Sample(f"<tool_call>\n{CITY_CALL}\n{NOW_CALL}\n</tool_call> done", TWO, "done"),
    Sample(f"<tool_call>{CITY_CALL}{NOW_CALL}", TWO),
    plain(f"<tool_call>\n{CITY_CALL}\n{{no}}\n</tool_call>"),
    plain('<tool_call>{"name": "a\nb'),
    plain('<tool_call>{"name": "a\n'),
    plain('<tool_call>{"name": "a\n"]'),
    plain(tagged("{not json}")),
    plain(tagged(CITY_CALL + "}")),
    plain(tagged('{"name": "", "arguments": {}}')),
    plain(tagged('{"name": "now", "arguments": [1]}')),
    plain(tagged("look(place=1)")),
    plain("<tool_call>\n" + CITY_CALL[:-4]),
    plain("<tool_call>\n"),
    plain('<tool_call>{"name": "a\\'),
    plain("<tool_call>" + '{"a":' * 300),
]
GRANITE = [
    Sample(f"<|tool_call|>[{CITY_CALL}, {NOW_CALL}]", TWO),
    Sample(f"Well:\n<tool_call>[{NESTED_CALL}]", (("look", NESTED),), "Well:"),
    Sample(tagged(CITY_CALL, NOW_CALL), TWO),
    Sample(f"<|tool_call|>[{LINES_CALL}, {NOW_CALL}]", (("look", LINES), ("now", {}))),
    Sample(f"<tool_call>{CITY_CALL}\n{NOW_CALL}</tool_call>", TWO),
    Sample(f"<tool_call>{CITY_CALL}<tool_call>{NOW_CALL}", TWO),
    Sample(f"<|tool_call|>[{NOW_CALL}]\n[1] a note", (("now", {}),), "[1] a note"),
    plain("<|tool_call|>[{]}"),
    plain(f"<|tool_call|>[{CITY_CALL}"),
    plain("<|tool_call|>[]"),
]
PHI4 = [
    Sample(f"<|tool_call|>[{CITY_CALL}, {NOW_CALL}]<|/tool_call|>", TWO),
    Sample(f"functools[{CITY_CALL}] done", (("look", CITY),), "done"),
    Sample(f"Use functools:\n<|tool_call|>[{NESTED_CALL}]<|/tool_call|>", (("look", NESTED),), "Use functools:"),
    Sample(f"functools[{LINES_CALL}]", (("look", LINES),)),
    Sample(f"<|tool_call|>[{CITY_CALL}]\n<|tool_call|>[{NOW_CALL}]", TWO),
    Sample(f"<|tool_call|>[{CITY_CALL}]\n<|/tool_call|>", (("look", CITY),)),
    plain("functools.partial(f) and functools[1]"),
    plain("<|tool_call|>[1, 2]<|/tool_call|>"),
]
LLAMA3 = [
    Sample(call("look", CITY, "parameters"), (("look", CITY),)),
    Sample(f"<|python_tag|>{CITY_CALL}; {call('now', {}, 'parameters')}", TWO),
    Sample(f"\n{NESTED_CALL}\n", (("look", NESTED),)),
    Sample(f"Text <|python_tag|>{NOW_CALL}", (("now", {}),), "Text"),
    Sample(f"{NOW_CALL} and more", (("now", {}),), "and more"),
    Sample(f"{LINES_CALL}\n{NOW_CALL}", (("look", LINES), ("now", {}))),
    plain(call("unknown", {})),
    plain(f"Text {NOW_CALL}"),
    plain('{"answer": 42}'),
    plain(CITY_CALL[:-1]),
    plain("<|python_tag|>print(1)"),
]
PYTHONIC = [
    Sample("[look(place='Köln 🦊'), now()]", TWO),
    Sample("<|python_start|>[now()]<|python_end|>", (("now", {}),)),
    Sample(
        r"""[look(place='it\'s "])" [', deep={"a": [1, -2.5, True, null]}, sure=false)]""",
        (("look", {"place": 'it\'s "])" [', "deep": {"a": [1, -2.5, True, None]}, "sure": False}),),
    ),
    Sample("[now()] done", (("now", {}),), "done"),
    Sample("[look(place='a\n\tb \"c\"')]", (("look", LINES),)),
    Sample("[look(place='''a\n\tb \"c\"''')]", (("look", LINES),)),
    plain("[look(place='a\n"),
    plain(r"[look(place='\ud800')]"),
    plain("[look(days=1e999)]"),
    plain("[unknown(a=1)]"),
    plain("[look('Köln')]"),
    plain("[look(**{})]"),
    plain("[look(place=open('x'))]"),
    plain("[look(place={1, 2})]"),
    plain(r"[look(place='\d' 5)]"),
    plain("[look(days=" + "9" * 5000 + ")]"),
    plain("[1](http://x) is a link"),
    plain("[now("),
    plain("[" * 300),
]
MISTRAL = [
    Sample(f"[TOOL_CALLS][{CITY_CALL}, {NOW_CALL}]", TWO),
    Sample(f"[TOOL_CALLS] [{NESTED_CALL}]", (("look", NESTED),)),
    Sample(f"Hm. [TOOL_CALLS]look[ARGS]{json.dumps(CITY)}[TOOL_CALLS]now[CALL_ID]abcdefghi[ARGS]{{}}", TWO, "Hm."),
    Sample("[TOOL_CALLS]now{}", (("now", {}),)),
    Sample(f"[TOOL_CALLS][{LINES_CALL}]", (("look", LINES),)),
    Sample(f"[TOOL_CALLS]look[ARGS]{LINES_CALL[29:-1]}", (("look", LINES),)),
    plain("[TOOL_CALLS]"),
    plain("[TOOL_CALLS][ARGS]{}"),
    plain("[TOOL_CALLS]look[ARGS]{x"),
    plain("[TOOL_CALLS][{}]"),
]


def coder(name: str, **parameters: str) -> str:
    inner = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in parameters.items())
    return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"


QWEN3_CODER = [
    Sample(f"Sure.\n{coder('look', place='Köln 🦊')}\n{coder('now')}", TWO, "Sure."),
    Sample(
        coder("look", place="12", days="3", sure="True", deep='{"a": "</parameter>"}', note="null"),
        (("look", {"place": "12", "days": 3, "sure": True, "deep": {"a": "</parameter>"}, "note": None}),),
    ),
    Sample(
        coder("look", place="a\n</tool_call> </parameter> <tool_call>\n b", days="many"),
        (("look", {"place": "a\n</tool_call> </parameter> <tool_call>\n b", "days": "many"}),),
    ),
    Sample(
        coder("look", place="{'x': 1}", deep="{'x': [1, None, True], 'y': \"it's\"}", sure="False", note="None"),
        (
            (
                "look",
                {"place": "{'x': 1}", "deep": {"x": [1, None, True], "y": "it's"}, "sure": False, "note": None},
            ),
        ),
    ),
    Sample(
        coder("look", deep="{'x': open('f')}", days="['p']"), (("look", {"deep": "{'x': open('f')}", "days": "['p']"}),)
    ),
    Sample(coder("look", place="Köln 🦊").removeprefix("<tool_call>\n"), (("look", CITY),)),
    Sample(f"Well.\n{coder('now')[12:]}\nDone", (("now", {}),), "Well.\n\nDone"),
    Sample(coder("look", place="Köln 🦊").removesuffix("\n</tool_call>") + "\n" + coder("now"), TWO),
    Sample(coder("look", place="Köln 🦊").removesuffix("</tool_call>") + coder("now")[12:], TWO),
    Sample(coder("look", deep=r"{'a': '\ud800'}"), (("look", {"deep": r"{'a': '\ud800'}"}),)),
    Sample(coder("look", deep="{'a': 1e999}"), (("look", {"deep": "{'a': 1e999}"}),)),
    plain(coder("unknown")[12:]),
    plain("The tag <function=look> begins a call."),
    plain("<tool_call>\n<function=look>\n<parameter=place>\nx\n</parameter>\n"),
    plain("<tool_call>\n<function=>\n</function>\n</tool_call>"),
    plain(tagged(CITY_CALL)),
    plain("<tool_call>\n<function=look"),
]


def glm(name: str, **values: str) -> str:
    inner = "".join(f"<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n" for key, value in values.items())
    return f"<tool_call>{name}\n{inner}</tool_call>"


GLM = [
    Sample(f"Sure.\n{glm('look', place='Köln 🦊')}\n{glm('now')}", TWO, "Sure."),
    Sample(
        glm("look", place="12", days="3", deep='{"a": ["</tool_call>"]}', note="null", extra="4"),
        (("look", {"place": "12", "days": 3, "deep": {"a": ["</tool_call>"]}, "note": None, "extra": 4}),),
    ),
    Sample(glm("look", deep="{'x': [1, None]}"), (("look", {"deep": {"x": [1, None]}}),)),
    Sample(glm("look", place="Köln 🦊").removesuffix("</tool_call>") + glm("now"), TWO),
    Sample("<tool_call>see<tool_call>now</tool_call>", (("now", {}),), "<tool_call>see"),
    plain("<tool_call>look\n<arg_key>place</arg_key>\n<arg_value>x"),
    plain("<tool_call>look at this</tool_call>"),
    plain("<tool_call></tool_call>"),
    plain("<tool_call>"),
]


def deepseek(*calls: str) -> str:
    inner = "\n".join(f"<｜tool▁call▁begin｜>{call}<｜tool▁call▁end｜>" for call in calls)
    return f"<｜tool▁calls▁begin｜>{inner}<｜tool▁calls▁end｜>"


def first_form(name: str, arguments: Any) -> str:
    return f"function<｜tool▁sep｜>{name}\n```json\n{json.dumps(arguments)}\n```"


DEEPSEEK = [
    Sample(f"Well. {deepseek(first_form('look', CITY), first_form('now', {}))}", TWO, "Well."),
    Sample(deepseek(f"look<｜tool▁sep｜>{json.dumps(CITY)}", "now<｜tool▁sep｜>{}"), TWO),
    Sample(deepseek(first_form("look", NESTED)), (("look", NESTED),)),
    Sample(
        deepseek("now<｜tool▁sep｜>{}", "now<｜tool▁sep｜>{"),
        (("now", {}),),
        "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    Sample(deepseek(f"look<｜tool▁sep｜>{LINES_CALL[29:-1]}"), (("look", LINES),)),
    Sample(
        deepseek(f"look<｜tool▁sep｜>{json.dumps(CITY)}", "now<｜tool▁sep｜>{}").replace("<｜tool▁call▁end｜>", ""),
        TWO,
    ),
    plain(deepseek("look{}")),
    plain("<｜tool▁calls▁begin｜>"),
    plain(deepseek(first_form("look", [1]))),
]


def kimi(*calls: str) -> str:
    inner = "".join(f"<|tool_call_begin|>{call}<|tool_call_end|>" for call in calls)
    return f"<|tool_calls_section_begin|>{inner}<|tool_calls_section_end|>"


KIMI_ARGUMENTS = "<|tool_call_argument_begin|>"
KIMI = [
    Sample(
        f"Hm. {kimi(f'functions.look:0{KIMI_ARGUMENTS}{json.dumps(CITY)}', f'functions.now:1{KIMI_ARGUMENTS}{{}}')}",
        TWO,
        "Hm.",
    ),
    Sample(
        kimi(f"functions.look:7 <|tool_call_argument_begin|> {json.dumps(NESTED)} ") + "\nafter",
        (("look", NESTED),),
        "after",
    ),
    Sample(kimi(f"functions.look:0{KIMI_ARGUMENTS}{LINES_CALL[29:-1]}"), (("look", LINES),)),
    Sample(
        kimi(f"functions.look:0{KIMI_ARGUMENTS}{json.dumps(CITY)}", f"functions.now:1{KIMI_ARGUMENTS}{{}}").replace(
            "<|tool_call_end|>", ""
        ),
        TWO,
    ),
    plain(kimi("functions.look:0<|tool_call_argument_begin|>no")),
    plain(kimi("functions.look:0")),
    plain("<|tool_calls_section_begin|><|tool_call_begin|>"),
]


def message(channel: str, text: str, end: str = "<|end|><|start|>assistant") -> str:
    return f"<|channel|>{channel}<|message|>{text}{end}"


THOUGHT = message("analysis", "Think <tool_call> ü.\n")
GPT_OSS = [
    Sample(THOUGHT + message("final", "Hello 🦊", "<|return|>"), content="Hello 🦊", reasoning="Think <tool_call> ü."),
    Sample(
        THOUGHT
        + message("commentary", "I look.")
        + message("commentary to=functions.look <|constrain|>json", json.dumps(CITY), "<|call|>")
        + "<|start|>assistant to=functions.now"
        + message("commentary", "{}", ""),
        TWO,
        "I look.",
        "Think <tool_call> ü.",
    ),
    Sample(" to=functions.look" + message("commentary json", json.dumps(NESTED), ""), (("look", NESTED),)),
    Sample(message("commentary to=functions.look", LINES_CALL[29:-1], "<|call|>"), (("look", LINES),)),
    Sample(
        message("commentary to=functions.look", json.dumps(CITY), "<|start|>assistant")
        + message("commentary to=functions.now", "{}", "<|call|>"),
        TWO,
    ),
    Sample(message("analysis", "cut off", ""), reasoning="cut off"),
    plain(" to=functions.look" + message("commentary json", "{not", "")),
    plain(message("commentary to=functions.look", "[1]", "")),
    plain("<|channel|>analysis"),
    plain("No messages at all."),
]
TOOL_CORPUS: dict[str, list[Sample]] = {
    "hermes": HERMES,
    "granite": GRANITE,
    "phi4": PHI4,
    "llama3_json": LLAMA3,
    "pythonic": PYTHONIC,
    "mistral": MISTRAL,
    "qwen3_coder": QWEN3_CODER,
    "glm": GLM,
    "deepseek_v3": DEEPSEEK,
    "kimi_k2": KIMI,
    "gpt_oss": GPT_OSS,
}


def thought(start: str, end: str) -> list[Sample]:
    return [
        Sample(
            f"{start}\nWell ü,\n\nthen {{}}.\n{end}\n\nHello 🦊\n",
            content="Hello 🦊\n",
            reasoning="Well ü,\n\nthen {}.",
        ),
        Sample(f"\n{start}{end}Hello", content="Hello"),
        Sample(f"{start}never {end[:-1]} closed", reasoning=f"never {end[:-1]} closed"),
        Sample(f"{start}a{end}b {start}c{end}", content=f"b {start}c{end}", reasoning="a"),
    ]


UNSTARTED = [plain("Hello <thin [THIN 🦊\n"), plain(" \nHi"), plain("Hi <think>x</think>")]
REASONING_CORPUS: dict[str, list[Sample]] = {
    "qwen3": thought("<think>", "</think>") + UNSTARTED,
    "glm": thought("<think>", "</think>") + UNSTARTED,
    "mistral": thought("[THINK]", "[/THINK]") + UNSTARTED,
    "deepseek_r1": [
        *thought("<think>", "</think>"),
        Sample("Well.\n</think>\n\nHello", content="Hello", reasoning="Well."),
    ],
}
