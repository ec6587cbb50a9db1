"""What observing token importance and ranking it costs, beside the plain forward pass and the peers' arithmetic.

One thread, process-CPU time; all candidates of a table run once per round, interleaved, and a ratio is the median of
the paired ratios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.speed._sheet import Sheet
from rskd.distillation.plackett_luce import topk_listmle
from rskd.importance import observe_attention

Candidate = Callable[[], object]


def interleaved(candidates: dict[str, Candidate], *, rounds: int) -> dict[str, list[float]]:
    """Return CPU seconds per round of every candidate; the first call of each is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, run in candidates.items():
            start = time.process_time()
            run()
            if number:
                seconds[name].append(time.process_time() - start)
    return seconds


def report(sheet: Sheet, title: str, candidates: dict[str, Candidate], *, rounds: int) -> None:
    """Note median milliseconds and the median of the paired ratios to the first candidate."""
    seconds = interleaved(candidates, rounds=rounds)
    base = next(iter(seconds.values()))
    sheet.table(title, "CPU ms|.2f", "x the first|.3f")
    for name, values in seconds.items():
        ratio = statistics.median(v / b for v, b in zip(values, base, strict=True))
        sheet.row(name, 1e3 * statistics.median(values), ratio)


def forward(model: nn.Module, images: Tensor, blocks: list[int] | None, definition: str) -> Candidate:
    @torch.no_grad()
    def run() -> None:
        observed = nullcontext() if blocks is None else observe_attention(model, blocks, definition=definition)
        with observed as seen:
            model(images)
        dict(seen or {})

    return run


def observation(sheet: Sheet, side: int, *, batch: int, rounds: int) -> None:
    model = timm.create_model("vit_small_patch16_224", img_size=side).eval()
    images = torch.randn(batch, 3, side, side)
    candidates = {
        "plain forward pass": forward(model, images, None, ""),
        "received, 3 blocks": forward(model, images, [3, 7, 11], "received"),
        "cls, 3 blocks": forward(model, images, [3, 7, 11], "cls"),
    }
    report(
        sheet,
        f"Observation, ViT-S/16 at {side} px, batch {batch} (target: <= 1.05 at 224, <= 1.10 at 512)",
        candidates,
        rounds=rounds,
    )


def rollout(sheet: Sheet, side: int, *, rounds: int) -> None:
    model = timm.create_model("vit_base_patch16_224", img_size=side).eval()
    unfused = timm.create_model("vit_base_patch16_224", img_size=side).eval()
    for block in unfused.blocks:
        block.attn.fused_attn = False
    images = torch.randn(1, 3, side, side)
    candidates = {
        "plain forward pass": forward(model, images, None, ""),
        "rollout": forward(model, images, [-1], "rollout"),
        "forward pass, attention written out": forward(unfused, images, None, ""),
        "all maps kept, then multiplied (vit-explain)": lambda: dense_rollout(unfused, images),
    }
    report(
        sheet,
        f"Exact rollout, ViT-B/16 at {side} px (target: <= 1.12 at 224, <= 1.35 at 512)",
        candidates,
        rounds=rounds,
    )


@torch.no_grad()
def dense_rollout(model: nn.Module, images: Tensor) -> Tensor:
    """Return the class row of the product of (A + I) / 2, with every map in memory, as commonly published."""
    maps: list[Tensor] = []
    handles = [
        block.attn.attn_drop.register_forward_hook(lambda m, args, out: maps.append(out)) for block in model.blocks
    ]
    model(images)
    for handle in handles:
        handle.remove()
    identity = torch.eye(maps[0].shape[-1])
    product = identity
    for attention in maps:
        product = ((attention.mean(1) + identity) / 2) @ product
    return product[:, 0, 1:]


class LargestTensor(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that any operation made."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return out


def memory(sheet: Sheet) -> None:
    side = 1024
    model = timm.create_model("vit_tiny_patch16_224", img_size=side, depth=1).eval()
    images = torch.randn(1, 3, side, side)
    dense = f"{3 * 4097**2 * 4 / 2**20:.0f} MiB"
    sheet.table(f"Largest tensor, ViT-Ti/16 at {side} px: N = 4096 (dense attention: {dense})", "MiB|.2f")
    for name, blocks in (("plain forward pass", None), ("received", [0])):
        observed = nullcontext() if blocks is None else observe_attention(model, blocks)
        with torch.no_grad(), LargestTensor() as largest, observed:
            model(images)
        sheet.row(name, largest.bytes / 2**20)


def allrank_listmle(s: Tensor, t: Tensor) -> Tensor:
    """The arithmetic of allRank's listMLE: shuffle, sort, gather, exp, cumulative sum, log."""
    shuffle = torch.randperm(s.shape[-1])
    s, t = s[:, shuffle], t[:, shuffle]
    sorted_t, order = t.sort(descending=True, dim=-1)
    padded = sorted_t == -1
    sorted_s = torch.gather(s, 1, order)
    sorted_s[padded] = float("-inf")
    sorted_s = sorted_s - sorted_s.max(dim=1, keepdim=True).values
    tails = sorted_s.exp().flip(dims=[1]).cumsum(dim=1).flip(dims=[1])
    losses = (tails + 1e-10).log() - sorted_s
    losses[padded] = 0.0
    return losses.sum(1).mean()


def bare(s: Tensor, t: Tensor) -> Tensor:
    """A sort and a cumulative sum: the least any such loss does."""
    return s.gather(1, t.argsort(1, descending=True)).cumsum(1).sum()


def losses(sheet: Sheet, tokens: int, *, rounds: int) -> None:
    s, t = torch.randn(8, tokens), torch.rand(8, tokens)

    def step(loss: Callable[[Tensor, Tensor], Tensor]) -> Candidate:
        def run() -> None:
            for _ in range(10):
                leaf = s.clone().requires_grad_()
                loss(leaf, t).backward()

        return run

    k = round(0.25 * tokens)
    candidates = {
        "allRank's listMLE (10 x)": step(allrank_listmle),
        f"topk_listmle, k = {k} (10 x)": step(lambda a, b: topk_listmle(a, b, k=k).mean()),
        "topk_listmle, k = N (10 x)": step(lambda a, b: topk_listmle(a, b, k=tokens).mean()),
        "bare sort + cumulative sum (10 x)": step(bare),
    }
    report(sheet, f"Ranking loss forward + backward, B = 8, N = {tokens} (target: <= 1.0)", candidates, rounds=rounds)


def main(sheet: Sheet) -> None:
    rounds = sheet.rounds(15)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for tokens in (196, 1024, 4096):
        losses(sheet, tokens, rounds=2 * rounds)
    memory(sheet)
    for side, batch in ((224, 1), (224, 8), (512, 1)):
        observation(sheet, side, batch=batch, rounds=rounds)
    for side in (224, 512):
        rollout(sheet, side, rounds=max(3, rounds // 2))
