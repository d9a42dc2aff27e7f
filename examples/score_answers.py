"""Scores given answers by their log-probability. The model generates nothing here.

Run `python examples/score_answers.py [URL]`.
"""

import sys

from openai import OpenAI

QUESTION = "<|bos|><|user|>\nWhat does os.path.join do?<|end|>\n<|assistant|>\n"
ANSWERS = [
    "Delay execution for a given number of seconds.",
    "Join one or more path segments intelligently.",
    "Serialize obj to a JSON formatted str.",
]

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
client = OpenAI(base_url=f"{url}/v1", api_key="none")
model = client.models.list().data[0].id

# `echo` with `max_tokens=0` returns the log-probabilities of the prompt itself.
prompts = [QUESTION + answer for answer in ANSWERS]
special = {"add_special_tokens": False}  # QUESTION has them
completion = client.completions.create(
    model=model, prompt=prompts, echo=True, max_tokens=0, logprobs=0, extra_body=special
)
scores = {}
for answer, choice in zip(ANSWERS, completion.choices, strict=True):
    logprobs = choice.logprobs
    assert logprobs is not None
    pairs = zip(logprobs.text_offset or [], logprobs.token_logprobs or [], strict=True)
    own = [value for offset, value in pairs if offset >= len(QUESTION)]
    scores[answer] = sum(own) / len(own)
for answer in sorted(scores, key=lambda answer: scores[answer], reverse=True):
    print(f"{scores[answer]:7.3f}  {answer}")
