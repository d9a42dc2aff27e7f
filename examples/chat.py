"""Asks one question and prints the answer.

Run `python examples/chat.py [URL]`.
"""

import sys

from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
client = OpenAI(base_url=f"{url}/v1", api_key="none")
model = client.models.list().data[0].id

answer = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "What does os.path.join do?"}],
    max_tokens=64,
    temperature=0,
)
print(answer.choices[0].message.content)
if answer.usage is not None:
    print(f"{answer.usage.prompt_tokens} tokens in, {answer.usage.completion_tokens} tokens out")
