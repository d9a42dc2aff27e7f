"""Trains the two networks on the token files: the main one on text and dialogues, the draft to foresee the main one.

AdamW, linear warm-up, cosine decay, fp32 weights under bf16 autocast, one device. The number of steps comes from the
time that it may take, unless it is given: then the learning rate follows the clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from .dataset import TRAINED
from .network import Network
from .tokenizer import BOS, TOKEN_ID

SMALL_SHARES = (("documents", 0.05, 0.5), ("plain", 0.8, 1.0), ("tools", 0.15, 1.0))
DRAFT_SHARES = (("documents", 0.0, 0.0), ("plain", 0.5, 1.0), ("tools", 0.5, 1.0))


@dataclass(frozen=True)
class Plan:
    """How one network is trained."""

    rows: int = 64
    length: int = 2048
    learning_rate: float = 3e-3
    minutes: float = 6.0
    steps: int = 0  # 0: as many as fit into `minutes`
    warmup: int = 200
    weight_decay: float = 0.1
    shares: tuple[tuple[str, float, float], ...] = (  # stream, share of the rows, weight of a token
        ("documents", 0.44, 1.0),
        ("plain", 0.25, 2.0),
        ("tools", 0.31, 2.0),
    )


def pack(starts: np.ndarray, size: int, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of whole neighbouring conversations, as many as fit into `room` tokens: beginnings and lengths."""
    ends = np.append(starts[1:], size)
    first, used = [], []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        if end - start > room or start + room > size:
            continue
        if first and first[-1] + used[-1] == start and used[-1] + end - start <= room:
            used[-1] += end - start
        else:
            first.append(start)
            used.append(end - start)
    return np.array(first), np.array(used)


class Streams:
    """The token files on the device, and batches drawn from them."""

    def __init__(self, path: Path, device: str, seed: int, length: int) -> None:
        self.device, self.length = device, length
        self.tokens: dict[str, Tensor] = {}
        self.rows: dict[str, tuple[Tensor, Tensor]] = {}
        with np.load(path) as arrays:
            for name in arrays.files:
                array = arrays[name]
                self.tokens[name] = torch.from_numpy(array.astype(np.int32)).to(device)
                if name in ("plain", "tools"):
                    packed = pack(np.flatnonzero(array == TOKEN_ID[BOS]), array.size, length + 1)
                    self.rows[name] = tuple(torch.from_numpy(part).to(device) for part in packed)  # type: ignore
        self.generator = torch.Generator(device).manual_seed(seed)

    def _rows(self, name: str, count: int) -> tuple[Tensor, Tensor]:
        """Rows [count, length + 1] and which tokens count: any window of the documentation, whole conversations."""
        stream, offsets = self.tokens[name], torch.arange(self.length + 1, device=self.device)
        if name in self.rows:
            first, used = self.rows[name]
            chosen = torch.randint(first.numel(), (count,), generator=self.generator, device=self.device)
            first, used = first[chosen], used[chosen]
        else:
            last = stream.numel() - self.length - 1
            first = torch.randint(last, (count,), generator=self.generator, device=self.device)
            used = torch.full_like(first, self.length + 1)
        return stream[first[:, None] + offsets], offsets < used[:, None]

    def _counts(self, plan: Plan) -> list[int]:
        """Rows from each stream: the whole part of its share, and the rest by lot."""
        wanted = [plan.rows * share for _, share, _ in plan.shares]
        counts = [int(rows) for rows in wanted]
        for _ in range(plan.rows - sum(counts)):
            rest = torch.tensor([rows - int(rows) + 1e-6 for rows in wanted])
            counts[int(torch.multinomial(rest, 1))] += 1
        return counts

    def batch(self, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, targets and the weight of each target, [rows, length] each."""
        rows, used, weights = [], [], []
        for (name, _, weight), count in zip(plan.shares, self._counts(plan), strict=True):
            if not count:
                continue
            tokens, inside = self._rows(name, count)
            rows.append(tokens)
            used.append(inside)
            weights += [weight] * count
        tokens, inside = torch.cat(rows), torch.cat(used)
        trained = inside[:, 1:] & ((tokens[:, 1:] & TRAINED) > 0)
        ids = (tokens & (TRAINED - 1)).long()
        row_weight = torch.tensor(weights, device=self.device)[:, None]
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), trained * row_weight


def autocast(device: str) -> torch.autocast:
    """bf16 products over fp32 weights; the networks' `compute_dtype` says the same."""
    return torch.autocast(device.split(":")[0], torch.bfloat16)


def optimizer_for(network: Network, plan: Plan, device: str) -> torch.optim.AdamW:
    """AdamW; only matrices decay."""
    matrices = [p for p in network.parameters() if p.ndim >= 2]
    vectors = [p for p in network.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.95), fused=device.startswith("cuda"))


def learning_rate(plan: Plan, step: int, progress: float) -> float:
    """Linear warm-up over the first steps, then a cosine over the progress, down to one fiftieth."""
    if step < plan.warmup:
        return plan.learning_rate * (step + 1) / plan.warmup
    return plan.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def optimise(
    network: Network,
    loss_of: Callable[..., Tensor],
    streams: Streams,
    plan: Plan,
    report: Callable[[int], str],
) -> dict[str, float]:
    """The training loop; `report(step)` is called now and then for a remark. Returns steps, tokens, minutes, loss."""
    optimizer = optimizer_for(network, plan, streams.device)
    began, step, progress = time.monotonic(), 0, 0.0
    loss = torch.zeros(())
    bar = tqdm(total=100, desc="train", unit="%", mininterval=10)
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(plan, step, progress)
        with autocast(streams.device):
            loss = loss_of(*streams.batch(plan))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        elapsed = time.monotonic() - began
        progress = step / plan.steps if plan.steps else elapsed / (plan.minutes * 60)
        bar.update(min(100.0, 100 * progress) - bar.n)
        if step % 100 == 0:
            bar.write(f"step {step} loss {loss.item():.4f} {elapsed:.0f} s {report(step)}")
    bar.close()
    figures = {"steps": step, "tokens": step * plan.rows * plan.length, "loss": loss.item()}
    return {**figures, "minutes": (time.monotonic() - began) / 60}


def train_main(network: Network, streams: Streams, plan: Plan, save: Callable[[], None]) -> dict[str, float]:
    """Next-token training on the mixture; logits exist only where a token is trained."""
    trunk = torch.compile(network.hidden)

    def forward(ids: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        chosen = weights > 0
        logits = network.logits(trunk(ids)[chosen])
        loss = F.cross_entropy(logits.float(), targets[chosen], reduction="none")
        return (loss * weights[chosen]).sum() / weights.sum()

    def report(step: int) -> str:
        if step % 500:
            return ""
        save()
        if streams.device == "cpu":  # it would take as long as fifty steps
            return "saved"
        return f"held-out bits per token {heldout_bits(network, streams) / streams.tokens['heldout'].numel():.3f}"

    return optimise(network, forward, streams, plan, report)


def train_draft(draft: Network, main: Network, streams: Streams, plan: Plan) -> dict[str, float]:
    """The draft learns the main network's distribution where the main network speaks."""
    main.eval().requires_grad_(False)
    trunk, main_trunk = torch.compile(draft.hidden), torch.compile(main.hidden)

    def forward(ids: Tensor, _: Tensor, weights: Tensor) -> Tensor:
        chosen = weights > 0
        with torch.no_grad():  # sharpened, because greedy decoding is what counts
            wanted = F.softmax(main.logits(main_trunk(ids)[chosen]).float() / 0.7, dim=-1)
        log_probabilities = F.log_softmax(draft.logits(trunk(ids)[chosen]).float(), dim=-1)
        return (-(wanted * log_probabilities).sum(-1) * weights[chosen]).sum() / weights.sum()

    return optimise(draft, forward, streams, plan, lambda _: "")


@torch.no_grad()
def heldout_bits(network: Network, streams: Streams, length: int = 2048, chunk: int = 8) -> float:
    """Bits for all held-out tokens but each document's bos; all but the first tokens see half a window or more."""
    tokens = streams.tokens["heldout"]
    half = length // 2
    starts = range(0, max(1, tokens.numel() - half), half)
    windows = [(start, tokens[start : start + length + 1]) for start in starts]
    total = 0.0
    full = [w for w in windows if w[1].numel() == length + 1]
    rest = [w for w in windows if w[1].numel() != length + 1]
    for group in [full[i : i + chunk] for i in range(0, len(full), chunk)] + [[w] for w in rest]:
        rows = torch.stack([row for _, row in group])
        ids = (rows & (TRAINED - 1)).long()
        with autocast(streams.device):
            logits = network(ids[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none").view(
            len(group), -1
        )
        counted = (rows[:, 1:] & TRAINED) > 0
        for index, (start, _) in enumerate(group):
            seen = 0 if start == 0 else half  # the first half was counted with the window before
            total += (loss[index, seen:] * counted[index, seen:]).sum().item()
    return total / math.log(2)
