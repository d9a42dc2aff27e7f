r"""Makes the demo model: `--collect` the text, `--prepare` the tokens, `--train` on one device, `--card`.

On a fresh Debian machine with this repository's environment:

    python scripts/train_demo_model.py --collect --prepare
    python scripts/train_demo_model.py --train --device cuda
    python scripts/eval_demo_model.py --backend transformers --device cuda --write
    python scripts/train_demo_model.py --card

The steps may run on different machines: training needs only `data.npz`, `facts.json` and the model folder. Without a
GPU, the small form teaches less in half an hour on one core:

    python scripts/train_demo_model.py --collect --prepare --small
    python scripts/train_demo_model.py --train --small --rows 5 --length 512 --minutes 32 --draft-minutes 3.5 \
        --learning-rate 2e-3
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from demo_model import card

REPOSITORY = Path(__file__).resolve().parent.parent


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", action="store_true", help="download the packages and read the documentation")
    parser.add_argument(
        "--prepare", action="store_true", help="train the tokenizer, draw the dialogues, write the tokens"
    )
    parser.add_argument("--train", action="store_true", help="train the model and its draft")
    parser.add_argument("--card", action="store_true", help="write README.md from the figures")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "build" / "demo_model", help="folder for data")
    parser.add_argument("--model", type=Path, default=REPOSITORY / "demo_model", help="the model folder")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--minutes", type=float, default=12.0, help="training time of the model")
    parser.add_argument("--draft-minutes", type=float, default=2.0, help="training time of the draft")
    parser.add_argument("--steps", type=int, default=0, help="training steps, in place of a time")
    parser.add_argument("--small", action="store_true", help="what a CPU can learn in half an hour: less to know")
    parser.add_argument("--rows", type=int, default=64, help="rows in a batch")
    parser.add_argument("--length", type=int, default=2048, help="tokens in a row")
    parser.add_argument("--threads", type=int, default=1, help="on a CPU")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--resume", action="store_true", help="begin with the weights in the model folder")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the data to prepare, for trials")
    parser.add_argument("--tiny", action="store_true", help="a very small network and short rows, for trials on a CPU")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def train(arguments: argparse.Namespace) -> None:
    """Trains both networks, writes them and the figures that training gives."""
    import torch
    from demo_model.network import DRAFT, MAIN, TINY, Network, export
    from demo_model.train import DRAFT_SHARES, SMALL_SHARES, Plan, Streams, heldout_bits, train_draft, train_main
    from safetensors.torch import load_file

    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    torch.set_float32_matmul_precision("high")
    device, small = arguments.device, arguments.small
    length = 128 if arguments.tiny else arguments.length
    streams = Streams(arguments.work / "data.npz", device, arguments.seed, length)
    facts = json.loads((arguments.work / "facts.json").read_text(encoding="utf-8"))
    plan = Plan(arguments.rows, length, arguments.learning_rate, arguments.minutes, arguments.steps)
    plan = replace(plan, warmup=5) if arguments.tiny else plan
    plan = replace(plan, warmup=100, shares=SMALL_SHARES) if small else plan
    main, draft = (Network(size).to(device) for size in (TINY if arguments.tiny else MAIN, DRAFT))
    main.compute_dtype = draft.compute_dtype = torch.bfloat16
    if arguments.resume:
        main.load_state_dict(load_file(arguments.model / "model.safetensors"))
    trained = train_main(main, streams, plan, lambda: export(main, arguments.model))
    export(main, arguments.model)
    figures: dict[str, object] = {"main": {**trained, "learning_rate": plan.learning_rate, "warmup": plan.warmup}}
    with torch.no_grad():
        for parameter in main.parameters():  # what is judged is what is shipped
            parameter.copy_(parameter.to(torch.bfloat16))
    figures["bits_per_byte"] = heldout_bits(main, streams) / facts["heldout_bytes"]
    print(json.dumps(figures), flush=True)
    draft_plan = replace(
        plan, minutes=arguments.draft_minutes, learning_rate=5e-3, weight_decay=0.01, shares=DRAFT_SHARES
    )
    figures["draft"] = train_draft(draft, main, streams, draft_plan)
    export(draft, arguments.model / "draft")
    figures["parameters"] = {"main": main.num_parameters(), "draft": draft.num_parameters()}
    threads = f"{arguments.threads} CPU thread{'s' if arguments.threads > 1 else ''}"
    figures["hardware"] = f"one {torch.cuda.get_device_name()}" if device.startswith("cuda") else threads
    figures["small"] = small
    card.update_figures(arguments.model, {**figures, "data": facts})


def main() -> None:
    arguments = parse_arguments()
    if arguments.collect:
        from demo_model import dataset

        dataset.collect(arguments.work)
    if arguments.prepare:
        from demo_model import dataset

        dataset.prepare(arguments.work, arguments.model, arguments.small, arguments.scale, arguments.seed)
    if arguments.train:
        train(arguments)
    if arguments.card:
        card.write_card(arguments.model)


if __name__ == "__main__":
    main()
