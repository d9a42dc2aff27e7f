"""Answers a batch of prompts in one program, without a server.

Run `python examples/offline_batch.py [MODEL]`.
"""

import sys

from quire import LLM, SamplingParams

NAMES = ["os.path.join", "json.loads", "re.sub", "time.sleep"]


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else "demo_model"
    chats = [[{"role": "user", "content": f"What does {name} do?"}] for name in NAMES]
    with LLM(model) as llm:
        outputs = llm.chat(chats, SamplingParams(temperature=0, max_tokens=64), use_tqdm=False)
    for name, output in zip(NAMES, outputs, strict=True):
        print(f"{name}: {output.outputs[0].text}")


if __name__ == "__main__":
    main()
