"""The synthetic tools: what they are called, how people ask for them, what they answer.

One tool is one table row: name | description | arguments (name:kind) | questions | reply (name:kind) | spoken answer.
Further tools are made up at random, so that the model reads descriptions and does not only know names.
"""

# ruff: noqa: E501, SIM905 - the table has one tool a line

from __future__ import annotations

import random
from dataclasses import dataclass

from .values import COLOURS, KINDS, ROOMS, Values

TABLE = """
get_weather | Get the current weather for a city. | city:place | What is the weather in {city}?; How is the weather in {city} today?; Is it raining in {city}?; Tell me the weather for {city}. | temperature:count condition:sky | In {city} it is {temperature} degrees and {condition}.
get_forecast | Get the weather forecast for a city for some days. | city:place days:count | What will the weather be in {city} for the next {days} days?; Give me a {days} day forecast for {city}.; Forecast for {city}, {days} days please. | summary:phrase | The forecast for {city} over {days} days: {summary}.
get_local_time | Get the local time in a city. | city:place | What time is it in {city}?; Tell me the time in {city} now.; What is the local time in {city}? | time:time | It is {time} in {city}.
set_alarm | Set an alarm clock. | time:time | Wake me up at {time}.; Set an alarm for {time}.; I need an alarm at {time}. | status:state | The alarm is set for {time}.
set_timer | Start a countdown in minutes. | minutes:count | Set a timer for {minutes} minutes.; Start a {minutes} minute countdown.; Remind me when {minutes} minutes are over. | status:state | The timer runs for {minutes} minutes.
create_reminder | Create a reminder at a date. | text:phrase date:date | Remind me to {text} on {date}.; Create a reminder for {date}: {text}.; On {date}, remind me of {text}. | id:number | I will remind you of {text} on {date}.
add_event | Add an event to the calendar. | title:title date:date time:time | Add {title} to my calendar on {date} at {time}.; Put an event called {title} at {time} on {date}.; Schedule {title} for {date} at {time}. | id:number | {title} is in your calendar on {date} at {time}.
list_events | List the calendar's events on a date. | date:date | What is in my calendar on {date}?; Which appointments do I have on {date}?; Show my events for {date}. | count:count first:title | You have {count} events on {date}; the first is {first}.
send_email | Send an email. | to:email subject:title | Send an email to {to} with the subject {subject}.; Email {to} about {subject}.; Write to {to}, subject {subject}. | status:state | The email to {to} about {subject} is sent.
send_message | Send a text message to a person. | person:person text:phrase | Tell {person} that {text}.; Send {person} the message '{text}'.; Text {person}: {text}. | status:state | The message to {person} is sent.
call_contact | Call a person by phone. | person:person | Call {person}.; Please phone {person} for me.; Ring up {person}. | status:state | Calling {person} now.
find_contact | Look up a contact's phone number. | person:person | What is the phone number of {person}?; Find the number of {person}.; Look up {person} in my contacts. | phone:number | The number of {person} is {phone}.
convert_currency | Convert an amount of money. | amount:amount source:currency target:currency | Convert {amount} {source} to {target}.; How much is {amount} {source} in {target}?; What are {amount} {source} worth in {target}? | result:amount | {amount} {source} are {result} {target}.
convert_unit | Convert a quantity between units. | value:amount source:unit target:unit | Convert {value} {source} to {target}.; How many {target} are {value} {source}?; What is {value} {source} in {target}? | result:amount | {value} {source} are {result} {target}.
calculate_sum | Add two numbers. | a:number b:number | What is {a} plus {b}?; Add {a} and {b}.; Calculate the sum of {a} and {b}. | result:number | The sum of {a} and {b} is {result}.
calculate_product | Multiply two numbers. | a:number b:number | What is {a} times {b}?; Multiply {a} by {b}.; Calculate the product of {a} and {b}. | result:number | The product of {a} and {b} is {result}.
square_root | Compute the square root of a number. | value:number | What is the square root of {value}?; Compute the root of {value}.; Take the square root of {value}. | result:amount | The square root of {value} is {result}.
random_number | Draw a random number in a range. | low:number high:number | Give me a random number between {low} and {high}.; Pick a number from {low} to {high}.; Draw a random number, at least {low} and at most {high}. | result:number | Your random number is {result}.
roll_dice | Roll dice. | count:count sides:count | Roll {count} dice with {sides} sides.; Throw {count} dice that have {sides} sides.; Please roll {count} {sides}-sided dice. | total:number | The dice show {total} in total.
translate_text | Translate text into a language. | text:phrase language:language | Translate '{text}' into {language}.; How do you say {text} in {language}?; What is '{text}' in {language}? | translation:phrase | In {language} it is: {translation}.
define_word | Look up a word in the dictionary. | word:word | What does the word {word} mean?; Define {word}.; Look up the meaning of '{word}'. | definition:phrase | {word} means: {definition}.
find_synonyms | Find words with the same meaning. | word:word | Give me synonyms for {word}.; Which words mean the same as {word}?; Find another word for '{word}'. | synonym:word | A synonym of {word} is {synonym}.
spell_check | Check the spelling of a text. | text:phrase | Check the spelling of '{text}'.; Is '{text}' spelled correctly?; Spell check this: {text}. | errors:count | I found {errors} mistakes in it.
search_web | Search the web. | query:phrase | Search the web for {query}.; Look up {query} online.; Find pages about {query}. | hits:number top:title | I found {hits} pages; the first is {top}.
search_files | Search files by name. | pattern:word | Find files named {pattern}.; Search my files for {pattern}.; Where are the files called {pattern}? | count:count first:path | There are {count} files; the first is {first}.
read_file | Read a text file. | path:path | Read the file {path}.; Show me what is in {path}.; Open {path} and tell me what it says. | content:phrase | The file {path} says: {content}.
write_file | Write text to a file. | path:path content:phrase | Write '{content}' to {path}.; Save the text '{content}' as {path}.; Create the file {path} with the content '{content}'. | bytes:count | I wrote {bytes} bytes to {path}.
delete_file | Delete a file. | path:path | Delete the file {path}.; Remove {path} please.; Get rid of {path}. | status:state | The file {path} is deleted.
list_folder | List the files of a folder. | folder:word | What is in the folder {folder}?; List the folder {folder}.; Which files does the folder {folder} have? | count:count | The folder {folder} has {count} files.
get_stock_price | Get the price of a share. | symbol:code | What is the price of the share {symbol}?; How is {symbol} trading?; Get me the stock price of {symbol}. | price:amount | {symbol} stands at {price}.
book_flight | Book a flight. | origin:place destination:place date:date | Book a flight from {origin} to {destination} on {date}.; I want to fly to {destination} from {origin} on {date}.; Get me on a plane from {origin} to {destination}, {date}. | code:code | Flight {code} from {origin} to {destination} is booked for {date}.
flight_status | Get the status of a flight. | flight:code | Is flight {flight} on time?; What is the status of flight {flight}?; Has {flight} landed? | status:state gate:code | Flight {flight} is {status} at gate {gate}.
book_hotel | Book a hotel room. | city:place nights:count date:date | Book a hotel in {city} for {nights} nights from {date}.; I need a room in {city} on {date} for {nights} nights.; Reserve {nights} nights in {city}, starting {date}. | hotel:title | You have {nights} nights at the {hotel} in {city}.
book_table | Reserve a table in a restaurant. | restaurant:title people:count time:time | Book a table for {people} at {restaurant} at {time}.; Reserve a table at {restaurant} for {people} people at {time}.; We are {people} and want to eat at {restaurant} at {time}. | status:state | A table for {people} at {restaurant} is reserved at {time}.
find_restaurant | Find restaurants in a city. | city:place food:word | Find a restaurant with {food} in {city}.; Where can I eat {food} in {city}?; I am in {city} and want {food}. | name:title | Try {name} in {city} for {food}.
get_directions | Get the way from one place to another. | origin:place destination:place | How do I get from {origin} to {destination}?; Show me the way from {origin} to {destination}.; Directions to {destination} from {origin} please. | minutes:count road:code | Take the {road} from {origin} to {destination}; it takes {minutes} minutes.
get_distance | Get the distance between two places. | origin:place destination:place | How far is it from {origin} to {destination}?; What is the distance between {origin} and {destination}?; How many kilometres from {origin} to {destination}? | kilometres:number | It is {kilometres} kilometres from {origin} to {destination}.
play_song | Play a song. | title:title | Play the song {title}.; I want to hear {title}.; Put on {title} please. | status:state | Now playing {title}.
set_volume | Set the loudness of the speaker in percent. | level:count | Set the volume to {level}.; Turn the sound to {level} percent.; Make it {level} percent loud. | status:state | The volume is {level} percent.
set_light | Set the colour of the light in a room. | room:room colour:colour | Make the light in the {room} {colour}.; Set the {room} light to {colour}.; I want {colour} light in the {room}. | status:state | The light in the {room} is {colour} now.
set_temperature | Set the heating of a room. | room:room degrees:count | Heat the {room} to {degrees} degrees.; Set the {room} to {degrees} degrees.; I want {degrees} degrees in the {room}. | status:state | The {room} will have {degrees} degrees.
add_item | Add an item to the shopping list. | item:phrase | Put {item} on my shopping list.; Add {item} to the list.; I need to buy {item}. | count:count | {item} is on your list, which has {count} items.
add_task | Add a task with a priority. | task:phrase priority:count | Add the task '{task}' with priority {priority}.; New task: {task}, priority {priority}.; Note a task of priority {priority}: {task}. | id:number | The task has the number {id}.
track_parcel | Track a parcel. | code:code | Where is my parcel {code}?; Track the package {code}.; Has parcel {code} been delivered? | place:place | Your parcel {code} is in {place}.
get_news | Get the news about a topic. | topic:phrase | What is the news about {topic}?; Show me headlines on {topic}.; Anything new on {topic}? | headline:phrase | The headline is: {headline}.
get_recipe | Get a recipe for a dish. | dish:phrase | How do I cook {dish}?; Give me a recipe for {dish}.; I want to make {dish}. | minutes:count | {dish} takes {minutes} minutes to make.
log_workout | Log a workout. | activity:word minutes:count | I did {minutes} minutes of {activity}.; Log {minutes} minutes of {activity}.; Note that I trained {activity} for {minutes} minutes. | calories:number | That was {calories} calories of {activity}.
check_host | Check whether a host answers. | host:host | Is {host} up?; Check if {host} answers.; Ping {host}. | milliseconds:count | {host} answered in {milliseconds} milliseconds.
restart_service | Restart a service on a host. | service:word host:host | Restart {service} on {host}.; Please restart the {service} service at {host}.; The {service} on {host} hangs, restart it. | status:state | {service} on {host} was restarted.
get_invoice | Get an invoice by its number. | number:number | Show me invoice {number}.; Get the invoice with the number {number}.; What does invoice {number} say? | total:amount | Invoice {number} is over {total}.
""".strip()

VERBS = "fetch update create remove inspect open close start stop move copy count lock rename share archive rate plan".split()
NOUNS = "order ticket account device sensor record album playlist vehicle policy member lesson recipe job image lamp door".split()
CLOSED_LISTS = {"colour": COLOURS, "room": ROOMS}


@dataclass(frozen=True)
class Tool:
    """One tool: `arguments` and `reply` map names to kinds of values."""

    name: str
    description: str
    arguments: dict[str, str]
    questions: tuple[str, ...]
    reply: dict[str, str]
    answer: str

    def schema(self) -> dict[str, object]:
        """The tool as OpenAI's `tools` entry."""
        properties = {}
        for name, kind in self.arguments.items():
            properties[name] = {"type": KINDS[kind][0]}
            if kind in CLOSED_LISTS:
                properties[name]["enum"] = CLOSED_LISTS[kind]
        parameters = {"type": "object", "properties": properties, "required": list(self.arguments)}
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}


def _pairs(text: str) -> dict[str, str]:
    return dict(pair.split(":") for pair in text.split())


def load_tools() -> tuple[Tool, ...]:
    tools = []
    for line in TABLE.splitlines():
        name, description, arguments, questions, reply, answer = (part.strip() for part in line.split(" | "))
        asked = tuple(question.strip() for question in questions.split(";"))
        tools.append(Tool(name, description, _pairs(arguments), asked, _pairs(reply), answer))
    return tuple(tools)


TOOLS = load_tools()


@dataclass(frozen=True)
class Call:
    """A question to one tool with its arguments filled in."""

    tool: Tool
    question: str
    arguments: dict[str, object]


def make_call(tool: Tool, values: Values) -> Call:
    """Draws arguments, no two alike, and puts them into one of the tool's questions."""
    arguments: dict[str, object] = {}
    for name, kind in tool.arguments.items():
        value = KINDS[kind][1](values)
        while value in arguments.values():
            value = KINDS[kind][1](values)
        arguments[name] = value
    return Call(tool, values.rng.choice(tool.questions).format(**arguments), arguments)


def make_reply(call: Call, values: Values) -> tuple[dict[str, object], str]:
    """What the tool returns, and the sentence that tells it."""
    reply = {name: KINDS[kind][1](values) for name, kind in call.tool.reply.items()}
    sentence = call.tool.answer.format(**{**reply, **call.arguments})
    return reply, sentence[0].upper() + sentence[1:]


def made_up_tool(rng: random.Random) -> Tool:
    """A tool that no other dialogue has: a random name, and arguments of random names and kinds."""
    values = Values(rng)
    verb, noun = rng.choice(VERBS), rng.choice([*NOUNS, values.made_up()])
    kinds = rng.sample(sorted(KINDS), rng.randint(1, 3))
    names = {kind if rng.random() < 0.6 else values.made_up(): kind for kind in kinds}
    wishes = [f"{name} {{{name}}}" for name in names]
    joined = wishes[0] if len(wishes) == 1 else ", ".join(wishes[:-1]) + " and " + wishes[-1]
    questions = (f"{verb.capitalize()} the {noun} with {joined}.", f"Please {verb} a {noun}, {joined}.")
    return Tool(
        f"{verb}_{noun}", f"{verb.capitalize()} a {noun}.", names, questions, {"status": "state"}, "Done: {status}."
    )
