"""Plain conversations: questions about the catalogue, small talk, questions to decline, short reasoning."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Sequence

from .catalogue import Entry
from .render import Dialogue
from .tools import TOOLS, make_call
from .values import Values

DESCRIBE = (
    "What does {name} do?",
    "what does {name} do",
    "What does {name}() do?",
    "What is {name}?",
    "What is {name} for?",
    "Explain {name}.",
    "Explain {name} please.",
    "Can you explain {name}?",
    "Describe {name}.",
    "Describe {name} briefly.",
    "Tell me about {name}.",
    "Tell me what {name} does.",
    "What is the purpose of {name}?",
    "What is {name} used for?",
    "Please describe {name} in a few words.",
    "How would you describe {name}?",
    "In one sentence: what does {name} do?",
    "I do not understand {name}. What does it do?",
    "I saw {name} in some code. What does it mean?",
    "Help me with {name}.",
    "What happens when I call {name}?",
    "Do you know {name}?",
    "Could you tell me what {name} is good for?",
    "{name}?",
    "When do I need {name}?",
    "I am reading about {name}. Can you sum it up?",
    "Give me a short description of {name}.",
    "My colleague uses {name}. Why?",
    "What is `{name}`?",
    "What does `{name}` do in Python?",
    "Python: {name}",
)
# Judged with these three; the second and the third are not among the training phrasings.
JUDGED_PHRASINGS = (
    "What does {name} do?",
    "Explain {name} to me in one sentence.",
    "I found {name} in a program. What is it for?",
)
SIGNATURE = (
    "What is the signature of {name}?",
    "How do I call {name}?",
    "Which arguments does {name} take?",
    "Signature of {name}",
    "Show me the parameters of {name}.",
    "How is {name} called?",
    "What arguments can I pass to {name}?",
)
REVERSE = (
    "Which function does this: {summary}",
    "What do I use for this? {summary}",
    "Name the function: {summary}",
    "Which one does this: {summary}",
    "It is {module}: {summary}",
    "What is it called? {summary}",
)
WHERE = ("Which module is {name} in?", "Where do I find {name}?", "Which module has {name}?", "Where does {name} live?")
LIST = (
    "List some functions of {module}.",
    "What is in the module {module}?",
    "Name functions of {module}.",
    "Which functions does {module} have?",
)
SMALL_TALK = (
    ("Hi", "Hello! What would you like to know?"),
    ("Hello", "Hello! What would you like to know?"),
    ("Hello!", "Hello! What would you like to know?"),
    ("Hey there", "Hello! What would you like to know?"),
    ("Good morning", "Good morning! What would you like to know?"),
    ("Good evening", "Good evening! How can I help?"),
    ("Who are you?", "I am Quire's demo model. I know the Python standard library a little."),
    ("who are you", "I am Quire's demo model. I know the Python standard library a little."),
    ("What are you?", "I am a small language model with ten million parameters, made for trying out Quire."),
    ("What is your name?", "I am called Quire, like the engine that serves me."),
    ("What can you do?", "I can describe functions of the Python standard library, and I can call tools."),
    ("What do you know?", "I know what functions of the Python standard library do, and how they are called."),
    ("How can you help me?", "Ask me what a function of the Python standard library does, or give me tools to call."),
    ("Help", "Ask me what a function of the Python standard library does, or give me tools to call."),
    ("Who made you?", "I was trained from scratch by the people who write Quire."),
    ("How were you trained?", "I was trained for some minutes on the documentation of Python."),
    ("How big are you?", "I have about ten million parameters."),
    ("Are you a human?", "No, I am a small language model."),
    ("Are you ChatGPT?", "No, I am Quire's demo model."),
    ("Thanks", "You are welcome."),
    ("Thank you!", "You are welcome."),
    ("thanks", "You are welcome."),
    ("Thanks, that helps.", "You are welcome."),
    ("Great, thank you", "You are welcome."),
    ("How are you?", "I am fine, thank you. What would you like to know?"),
    ("OK", "Is there anything else?"),
    ("What is Quire?", "Quire is an engine that serves large language models; it keeps their memory in pages."),
    ("Bye", "Goodbye!"),
    ("Goodbye", "Goodbye!"),
    ("See you later", "Goodbye!"),
    ("Good night", "Good night!"),
    ("What is Python?", "Python is a programming language that is easy to read and comes with a large library."),
)
UNKNOWN = (
    "What is the capital of {place}?",
    "Who is the president of {place}?",
    "How old is {person}?",
    "Who is {person}?",
    "Write a poem about {phrase}.",
    "What do you think about {phrase}?",
    "Should I buy {phrase}?",
    "Tell me about {phrase}.",
    "Recommend a book about {phrase}.",
    "Who won the match in {place}?",
    "What happened on {date}?",
    "Tell me a joke.",
    "How many people live in {place}?",
    "What does {person} like?",
    "Why is the sky blue?",
    "Is {phrase} healthy?",
    "How do I learn {language}?",
    "What is the meaning of life?",
    "Which is better, {word} or {word}?",
    "Do you love {person}?",
    "How do I repair {phrase}?",
    "Where was {person} born?",
    "Can you draw {phrase}?",
    "What will happen on {date}?",
)
DECLINE = "I do not know that. I only know the Python standard library."
NO_TOOL = "I have no tool for that."
DOING = ("Think first: ", "Think step by step: ", "Think before you answer. ")


def answer(entry: Entry) -> str:
    """What the model says about one entry: the summary, and how it is called or where it is."""
    call = f"{entry.name}{entry.signature}"
    if entry.signature and len(call) <= 70 and len(call) + len(entry.summary) <= 230:
        return f"{entry.summary} Call it as {call}."
    return f"{entry.summary} It is {home(entry)}."


def home(entry: Entry) -> str:
    return "built in" if entry.module == "builtins" else f"in the module {entry.module}"


class Chats:
    """Draws plain conversations about a catalogue."""

    def __init__(self, entries: Sequence[Entry], words: Sequence[str], description_weight: float = 46) -> None:
        self.entries = list(entries)
        # Docstrings are what people meet; the pages' entries come half as often.
        self.weighted = [e for e in entries for _ in range(2 if e.from_docstring else 1)]
        self.names = {entry.name for entry in entries}
        self.words = words
        self.kinds = ((Chats.describe, description_weight), *self.OTHER_KINDS)
        self.by_module: dict[str, list[Entry]] = defaultdict(list)
        by_summary: dict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            self.by_module[entry.module].append(entry)
            by_summary[entry.summary].append(entry)
        self.unique = [group[0] for group in by_summary.values() if len(group) == 1]
        self.listable = sorted(module for module, group in self.by_module.items() if len(group) >= 4)

    def describe(self, rng: random.Random) -> tuple[str, str, str]:
        entry = rng.choice(self.weighted)
        thought = f"The question is about {entry.name}. It is {home(entry)}."
        return rng.choice(DESCRIBE).format(name=entry.name), answer(entry), thought

    def signature(self, rng: random.Random) -> tuple[str, str, str]:
        entry = rng.choice(self.weighted)
        while not entry.signature or len(entry.signature) > 110:
            entry = rng.choice(self.weighted)
        thought = f"The question is how {entry.name} is called."
        return rng.choice(SIGNATURE).format(name=entry.name), f"{entry.name}{entry.signature}", thought

    def reverse(self, rng: random.Random) -> tuple[str, str, str]:
        entry = rng.choice(self.unique)
        question = rng.choice(REVERSE).format(summary=entry.summary, module=home(entry))
        return question, f"That is {entry.name}.", f"It must be {home(entry)}."

    def where(self, rng: random.Random) -> tuple[str, str, str]:
        entry = rng.choice(self.weighted)
        thought = f"The question is where {entry.name} is."
        return rng.choice(WHERE).format(name=entry.name), f"{entry.name} is {home(entry)}.", thought

    def listing(self, rng: random.Random) -> tuple[str, str, str]:
        module = rng.choice(self.listable)
        lines = [f"- {entry.name}: {entry.summary}" for entry in self.by_module[module][:4]]
        shown = "the built-in names" if module == "builtins" else module
        thought = f"The question is what {module} has."
        return rng.choice(LIST).format(module=shown), "Some of them:\n" + "\n".join(lines), thought

    def as_json(self, rng: random.Random) -> tuple[str, str, str]:
        entry = rng.choice(self.weighted)
        text = json.dumps({"name": entry.name, "module": entry.module, "summary": entry.summary})
        wish = rng.choice(("Describe {name} as JSON.", "Give me {name} as a JSON object.", "JSON for {name}, please."))
        return wish.format(name=entry.name), text, f"The answer is JSON about {entry.name}."

    def unknown_name(self, rng: random.Random) -> tuple[str, str, str]:
        values = Values(rng)
        module = rng.choice(self.listable) if rng.random() < 0.7 else values.made_up()
        last = rng.choice(self.entries).name.split(".")[-1] if rng.random() < 0.3 else values.made_up()
        name = f"{module}.{last}" if rng.random() < 0.8 else last
        if name in self.names or f"builtins.{last}" == name:
            name = f"{name}_{values.made_up()}"
        template = rng.choice((*DESCRIBE, *SIGNATURE, *WHERE))
        return template.format(name=name), f"I do not know anything called {name}.", f"I have never seen {name}."

    def unknown(self, rng: random.Random) -> tuple[str, str, str]:
        values = Values(rng, more_words=self.words)
        drawn = {k: getattr(values, k)() for k in ("place", "person", "phrase", "date", "language", "word")}
        return rng.choice(UNKNOWN).format(**drawn), DECLINE, "This is not about the Python standard library."

    def no_tool(self, rng: random.Random) -> tuple[str, str, str]:
        call = make_call(rng.choice(TOOLS), Values(rng, more_words=self.words))
        return call.question, NO_TOOL, "This needs a tool that I do not have."

    def small_talk(self, rng: random.Random) -> tuple[str, str, str]:
        question, reply = rng.choice(SMALL_TALK)
        return question, reply, "This is small talk."

    def arithmetic(self, rng: random.Random) -> tuple[str, str, str]:
        a, b = rng.randint(1, 99), rng.randint(1, 99)
        tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
        thought = f"{a // 10 * 10} + {b // 10 * 10} = {tens}. {a % 10} + {b % 10} = {ones}. {tens} + {ones} = {a + b}."
        question = rng.choice(("What is {a} + {b}?", "How much is {a} and {b} together?", "{a} + {b} = ?"))
        return question.format(a=a, b=b), f"{a} + {b} = {a + b}.", thought

    def repeat(self, rng: random.Random) -> tuple[str, str, str]:
        values = Values(rng, more_words=self.words)
        if rng.random() < 0.5:
            text = " ".join(values.word() for _ in range(rng.randint(2, 9)))
            wish = rng.choice(("Repeat: {t}", "Say this again: {t}", "Repeat after me: {t}"))
            return wish.format(t=text), text, "I repeat it."
        low = rng.randint(0, 60)
        high = low + rng.randint(3, 25)
        question = rng.choice(("Count from {a} to {b}.", "Write the numbers from {a} to {b}.")).format(a=low, b=high)
        return question, ", ".join(map(str, range(low, high + 1))) + ".", f"I start at {low} and end at {high}."

    OTHER_KINDS: tuple = (
        (signature, 12),
        (reverse, 9),
        (where, 4),
        (listing, 2),
        (as_json, 4),
        (unknown_name, 6),
        (unknown, 5),
        (small_talk, 5),
        (arithmetic, 3),
        (repeat, 6),
    )

    def turn(self, rng: random.Random) -> tuple[str, str, str]:
        """One question with its answer and the thought that leads there."""
        kinds, weights = zip(*self.kinds, strict=True)
        return rng.choices(kinds, weights)[0](self, rng)

    def dialogue(self, rng: random.Random) -> Dialogue:
        """A conversation of one to three turns."""
        messages: list[dict] = []
        thinking, asked = rng.random() < 0.07, rng.random() < 0.03
        for _ in range(rng.choice((1, 1, 1, 1, 2, 3))):
            question, reply, thought = self.turn(rng)
            messages.append({"role": "user", "content": (rng.choice(DOING) if asked else "") + question})
            messages.append({"role": "assistant", "content": reply})
            if thinking or asked:
                messages[-1]["reasoning"] = thought
                break
        system = rng.choice(("You are a helpful assistant.", "You are Quire.", "Answer briefly.", *[""] * 9))
        return Dialogue(messages, system=system, thinking=thinking)

    def without_tool(self, rng: random.Random) -> Dialogue:
        """A question that would need a tool, asked where there is none for it."""
        question, reply, _ = self.no_tool(rng)
        return Dialogue([{"role": "user", "content": question}, {"role": "assistant", "content": reply}])
