"""Random argument values for the synthetic tools, and what a spoken question calls them.

A part of every list is kept for judging (`evaluation=True`), and many values are made-up words, so that a right argument
is a copied one and not a remembered one.
"""

# ruff: noqa: E501, SIM905 - word lists read best as text

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

PLACES = (
    "London Paris Berlin Rome Madrid Vienna Oslo Helsinki Stockholm Copenhagen Lisbon Dublin Athens Warsaw Prague Budapest "
    "Zurich Geneva Hamburg Munich Cologne Leipzig Milan Naples Turin Venice Porto Seville Valencia Lyon Nice Bordeaux "
    "Marseille Brussels Antwerp Ghent Amsterdam Utrecht Rotterdam Tokyo Osaka Kyoto Seoul Beijing Shanghai Mumbai Delhi "
    "Chennai Bangkok Hanoi Jakarta Manila Sydney Melbourne Perth Auckland Wellington Toronto Montreal Vancouver Chicago "
    "Boston Seattle Denver Austin Dallas Houston Miami Atlanta Phoenix Portland Lima Quito Bogota Santiago Cairo Tunis "
    "Nairobi Lagos Accra Dakar Istanbul Ankara Tehran Riga Tallinn Vilnius Krakow Gdansk Sofia Zagreb Belgrade Reykjavik "
    "Bergen Malmo Tampere Graz Salzburg Basel Bern Lucerne Cork Galway Glasgow Edinburgh Cardiff Bristol Leeds York"
).split()
PEOPLE = (
    "Alice Bob Carol David Emma Frank Grace Henry Irene Jack Karen Liam Maria Nina Oscar Paula Quentin Rosa Samuel Tina "
    "Ulrich Vera Walter Xenia Yusuf Zoe Anna Ben Clara Daniel Elena Felix Gina Hugo Ivan Julia Kevin Laura Martin Nora "
    "Oliver Petra Ralf Sara Tom Ursula Victor Wendy Amir Bella Chen Dana Erik Fatima Goran Hana Ines Jonas Kira Lena"
).split()
WORDS = (
    "apple bread milk rent report budget garden kitchen window river summer winter holiday meeting dentist doctor paper "
    "letter music guitar piano market coffee tea sugar salt pepper chicken rice soup salad cheese butter train ticket "
    "passport luggage hotel flight museum theatre concert football tennis swimming running yoga history physics biology "
    "chemistry grammar poetry novel cinema camera printer keyboard monitor battery cable server database network backup "
    "invoice contract project deadline review release design testing training interview team client office lunch dinner "
    "breakfast birthday wedding present flowers blue green yellow small large old new fast slow quiet bright cold warm "
    "solar wind energy water forest mountain island bridge castle tower village school library hospital station"
).split()
LANGUAGES = "French German Spanish Italian Dutch Polish Swedish Finnish Greek Turkish Japanese Korean Arabic Hindi Czech".split()
CURRENCIES = "EUR USD GBP JPY CHF SEK NOK DKK PLN CZK HUF CAD AUD NZD INR CNY KRW BRL MXN ZAR".split()
UNITS = "metres kilometres miles feet inches grams kilograms pounds ounces litres gallons pints yards tonnes".split()
COLOURS = "red green blue white yellow orange purple pink warm cold".split()
ROOMS = "kitchen bedroom bathroom office hallway garage attic basement nursery study".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
SKIES = "sunny cloudy rainy windy foggy snowy clear stormy".split()
STATES = "ready done open closed late early delayed confirmed waiting boarding".split()
SUFFIXES = "txt csv json md log pdf png html xml yaml".split()
ONSETS = "b c d f g h j k l m n p r s t v w z br cr dr fl gr kl pl pr sh sk sl st th tr".split()
VOWELS = "a e i o u ai ea ee ia io ou".split()
CODAS = ["", "", "", "n", "r", "s", "l", "t", "m", "k", "nd", "rt", "x", "ck"]


def _kept_for_judging(word: str) -> bool:
    return hashlib.sha256(f"value:{word}".encode()).digest()[0] < 64


@dataclass
class Values:
    """A source of values; `more_words` widens the vocabulary that phrases are made of."""

    rng: random.Random
    evaluation: bool = False
    more_words: Sequence[str] = field(default_factory=tuple)

    def pick(self, words: Sequence[str]) -> str:
        """A word of the list's own half of the split."""
        while True:
            word = self.rng.choice(words)
            if _kept_for_judging(word) == self.evaluation:
                return word

    def made_up(self, syllables: int = 2) -> str:
        rng = self.rng
        return "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(syllables))

    def word(self) -> str:
        roll = self.rng.random()
        if roll < 0.2:
            return self.made_up(self.rng.randint(1, 3))
        return self.rng.choice(self.more_words) if self.more_words and roll < 0.6 else self.pick(WORDS)

    def place(self) -> str:
        return self.pick(PLACES) if self.rng.random() < 0.5 else self.made_up(self.rng.randint(2, 3)).capitalize()

    def person(self) -> str:
        first = self.pick(PEOPLE) if self.rng.random() < 0.6 else self.made_up().capitalize()
        return f"{first} {self.made_up().capitalize()}" if self.rng.random() < 0.2 else first

    def phrase(self) -> str:
        return " ".join(self.word() for _ in range(self.rng.randint(1, 4)))

    def language(self) -> str:
        return self.rng.choice(LANGUAGES)

    def currency(self) -> str:
        return self.rng.choice(CURRENCIES)

    def unit(self) -> str:
        return self.rng.choice(UNITS)

    def colour(self) -> str:
        return self.rng.choice(COLOURS)

    def room(self) -> str:
        return self.rng.choice(ROOMS)

    def sky(self) -> str:
        return self.rng.choice(SKIES)

    def state(self) -> str:
        return self.rng.choice(STATES)

    def day(self) -> str:
        return self.rng.choice(DAYS)

    def number(self) -> int:
        return self.rng.randint(1, 10 ** self.rng.randint(1, 4))

    def count(self) -> int:
        return self.rng.randint(2, 99)

    def amount(self) -> float:
        return round(self.rng.uniform(1, 10 ** self.rng.randint(1, 4)), self.rng.randint(1, 2))

    def date(self) -> str:
        return f"{self.rng.randint(1990, 2039)}-{self.rng.randint(1, 12):02}-{self.rng.randint(1, 28):02}"

    def time(self) -> str:
        return f"{self.rng.randint(0, 23):02}:{self.rng.choice(range(0, 60, 5)):02}"

    def code(self) -> str:
        letters = "".join(self.rng.choice("ABCDEFGHJKLMNPRSTUVWXYZ") for _ in range(self.rng.randint(2, 3)))
        return f"{letters}{self.rng.randint(10, 9999)}"

    def email(self) -> str:
        return f"{self.word()}@{self.made_up()}.{self.rng.choice(['com', 'org', 'net', 'eu'])}"

    def path(self) -> str:
        folder = f"{self.word()}/" if self.rng.random() < 0.5 else ""
        return f"{folder}{self.word()}.{self.rng.choice(SUFFIXES)}"

    def host(self) -> str:
        return f"{self.made_up()}.{self.rng.choice(['com', 'org', 'net', 'io'])}"

    def title(self) -> str:
        return " ".join(self.word().capitalize() for _ in range(self.rng.randint(1, 3)))


# kind -> (JSON type, generator); kinds with a closed list of values name it for the schema.
KINDS: dict[str, tuple[str, Callable[[Values], object]]] = {
    "place": ("string", Values.place),
    "person": ("string", Values.person),
    "word": ("string", Values.word),
    "phrase": ("string", Values.phrase),
    "title": ("string", Values.title),
    "language": ("string", Values.language),
    "currency": ("string", Values.currency),
    "unit": ("string", Values.unit),
    "colour": ("string", Values.colour),
    "room": ("string", Values.room),
    "sky": ("string", Values.sky),
    "state": ("string", Values.state),
    "day": ("string", Values.day),
    "date": ("string", Values.date),
    "time": ("string", Values.time),
    "code": ("string", Values.code),
    "email": ("string", Values.email),
    "path": ("string", Values.path),
    "host": ("string", Values.host),
    "number": ("integer", Values.number),
    "count": ("integer", Values.count),
    "amount": ("number", Values.amount),
}
