"""Gets an answer as JSON of a given schema: the engine allows only tokens that match it.

Run `python examples/json_schema.py [URL]`.
"""

import json
import sys
from typing import Any

from openai import OpenAI

schema = {
    "type": "object",
    "properties": {
        "module": {"enum": ["os", "json", "re"]},
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        "summary": {"type": "string", "maxLength": 40},
    },
    "required": ["module", "stars", "summary"],
    "additionalProperties": False,
}
answer_format: Any = {"type": "json_schema", "json_schema": {"name": "review", "schema": schema, "strict": True}}

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
client = OpenAI(base_url=f"{url}/v1", api_key="none")
model = client.models.list().data[0].id
answer = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "Review the module json."}],
    response_format=answer_format,
    max_tokens=200,
    temperature=0,
)
review = json.loads(answer.choices[0].message.content or "")
print(review["module"], review["stars"], review["summary"], sep="\n")
