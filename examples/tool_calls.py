"""Lets the model call a function, runs the function, and gives the result back to the model.

Run `python examples/tool_calls.py [URL]`.
"""

import json
import sys
from typing import Any

from openai import OpenAI


def get_weather(city: str) -> dict[str, Any]:
    return {"temperature": 21, "condition": "sunny" if city == "Paris" else "cloudy"}


parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
description = "Get the current weather for a city."
tools: Any = [{"type": "function", "function": {"name": "get_weather", "description": description}}]
tools[0]["function"]["parameters"] = parameters

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
client = OpenAI(base_url=f"{url}/v1", api_key="none")
model = client.models.list().data[0].id

messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
while True:
    answer = client.chat.completions.create(model=model, messages=messages, tools=tools, temperature=0)
    message = answer.choices[0].message
    if not message.tool_calls:
        break
    messages.append(message)
    call: Any
    for call in message.tool_calls:
        print(f"{call.function.name}({call.function.arguments})")
        result = get_weather(**json.loads(call.function.arguments))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": json.dumps(result)})
print(message.content)
