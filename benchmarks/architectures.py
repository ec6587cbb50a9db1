"""Which importance definitions work on which timm architectures: one row each, checked against explicit attention.

Run: ``python benchmarks/architectures.py [--write table.md] [names …]`` (about four minutes on one core).

The weights are random. The check uses no code of `rskd.importance`: fused attention is replaced by a dense softmax that
is kept, written-out softmaxes are kept as they are, and the place of every window's token is found by comparing feature
vectors with those of the whole map. The patched network must give the output of the untouched one, or the row fails.
Features are compared with timm's own `forward_intermediates`. Errors are relative to the mean importance 1 / N.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import torch
from timm.models.efficientvit_mit import LiteMLA
from torch import Tensor, nn
from torch.nn import functional as F

from rskd.errors import ModelError
from rskd.importance import attention_sites, feature_stages, gradient_importance, observe_attention, observe_features
from rskd.importance.sites import Site, prefix_tokens

MODELS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {},
    "vit_base_patch16_siglip_224": {"depth": 2},
    "vit_medium_patch16_reg4_gap_256": {"depth": 2},
    "vit_small_patch14_reg4_dinov2": {"depth": 2, "img_size": 224},
    "vit_srelpos_small_patch16_224": {"depth": 2},
    "vit_small_patch16_18x2_224": {"depth": 2},
    "deit_tiny_distilled_patch16_224": {"depth": 3},
    "deit3_small_patch16_224": {"depth": 2},
    "beit_base_patch16_224": {"depth": 2},
    "eva02_tiny_patch14_224": {"depth": 3},
    "vit_small_patch16_dinov3": {"depth": 2},
    "vit_betwixt_patch16_rope_reg4_gap_256": {"depth": 2},
    "samvit_base_patch16_224": {"depth": 3},
    "pit_ti_224": {},
    "swin_tiny_patch4_window7_224": {"depths": (2, 2, 2, 2)},
    "swinv2_tiny_window8_256": {"depths": (2, 2, 2, 2)},
    "swinv2_cr_tiny_224": {"depths": (2, 2, 2, 2)},
    "pvt_v2_b0": {},
    "pvt_v2_b2_li": {"depths": (1, 1, 1, 1)},
    "twins_pcpvt_small": {"depths": (1, 1, 2, 1)},
    "twins_svt_small": {"depths": (2, 2, 2, 2)},
    "maxvit_pico_rw_256": {},
    "coatnet_pico_rw_224": {},
    "tiny_vit_5m_224": {},
    "gcvit_xxtiny": {},
    "davit_tiny": {"depths": (1, 1, 1, 1)},
    "mvitv2_tiny": {},
    "visformer_tiny": {},
    "levit_128s": {},
    "fastvit_sa12": {},
    "efficientformer_l1": {},
    "caformer_s18": {},
    "mobilenetv4_hybrid_medium": {},
    "efficientvit_b0": {},
    "efficientvit_m0": {},
    "nest_tiny": {},
    "hiera_tiny_224": {},
    "nextvit_small": {},
    "cait_xxs24_224": {"depth": 2},
    "xcit_nano_12_p16_224": {"depth": 2},
    "volo_d1_224": {},
    "mobilevit_xxs": {},
    "edgenext_xx_small": {},
    "resnet18": {},
    "convnext_atto": {},
}
ATTENTION = ("received", "received_value", "cls", "cls_value", "rollout")
FEATURES = ("feature_norm", "at")


@dataclass
class Dense:
    """The attentions of one forward pass, held in full, by site."""

    weights: dict[str, list[Tensor]] = field(default_factory=dict)
    values: dict[str, list[Tensor]] = field(default_factory=dict)
    rows: dict[str, list[Tensor]] = field(default_factory=dict)
    """Candidates for the map before it was cut into windows, and what entered the projection to keys."""


@contextmanager
def explicit_attention(sites: list[Site]) -> Iterator[Dense]:
    """Replace fused attention by a dense one that is kept; keep the softmax of attention that is written out."""
    dense = Dense()
    running: list[str] = []

    def keep(weights: Tensor, values: Tensor | None = None) -> None:
        if running:
            dense.weights.setdefault(running[-1], []).append(weights.detach())
            if values is not None:
                dense.values.setdefault(running[-1], []).append(values.detach())

    def sdpa(q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, dropout_p: float = 0.0, **kwargs: Any) -> Tensor:
        scale = kwargs.get("scale") or q.shape[-1] ** -0.5
        logits = q @ k.mT * scale
        if attn_mask is not None:
            logits = logits + attn_mask
        weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
        keep(weights, v)
        return weights @ v

    softmax = torch.Tensor.softmax

    def kept_softmax(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = softmax(tensor, *args, **kwargs)
        keep(out)
        return out

    def linear(module: LiteMLA, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        products = q @ k.mT
        weights = products / (products.sum(-1, keepdim=True) + module.eps)
        keep(weights, v[..., :-1])
        return weights @ v[..., :-1]

    with ExitStack() as stack:
        for site in sites:
            _watch_rows(site, dense, running, stack)
        stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", sdpa))
        stack.enter_context(mock.patch.object(torch.Tensor, "softmax", kept_softmax))
        stack.enter_context(mock.patch.object(LiteMLA, "_attn", linear))
        yield dense


def _watch_rows(site: Site, dense: Dense, running: list[str], stack: ExitStack) -> None:
    """Keep the maps around the site, and note when it runs."""

    def candidate(tensor: Any) -> None:
        if isinstance(tensor, Tensor):
            dense.rows.setdefault(site.name, []).append(tensor.detach())

    def enter(module: nn.Module, args: Any) -> None:
        running.append(site.name)
        candidate(args[0])

    stack.callback(site.owner.register_forward_pre_hook(lambda module, args: candidate(args[0])).remove)
    norm = getattr(site.owner, "norm1", None)
    if isinstance(norm, nn.Module):

        def normed(module: nn.Module, args: Any, out: Any) -> None:
            if site.name not in dense.weights:  # a norm behind the attention is no candidate
                candidate(out)

        stack.callback(norm.register_forward_hook(normed).remove)
    stack.callback(site.module.register_forward_pre_hook(enter).remove)
    stack.callback(site.module.register_forward_hook(lambda module, args, out: running.pop() and None).remove)
    qkv = getattr(site.module, "qkv", None)
    if isinstance(qkv, nn.Module):
        stack.callback(qkv.register_forward_pre_hook(lambda module, args: candidate(args[0])).remove)


def expected(site: Site, dense: Dense, images: int, prefix: int, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the importance (B, N) that dense attention gives; `score` maps A (…, Nq, Nk) to (…, Nk)."""
    kept = dense.weights[site.name]
    weights = torch.stack(kept, 1) if len(kept) > 1 else kept[0]  # heads in turn
    if weights.ndim == 5:  # windows have an axis of their own
        weights = weights.flatten(0, 1)
    if weights.ndim == 3:
        heads: Any = getattr(site.module, "num_heads", 1) if len(weights) > images else 1
        weights = weights.view(-1, heads, *weights.shape[1:])
    windows = len(weights) // images
    if windows > 1 or hasattr(site.owner, "window_size") or hasattr(site.module, "ws"):
        return _unpartition(site, dense, weights, images, score)
    scores = score(weights).mean(1)[:, prefix:]
    return scores / scores.sum(1, keepdim=True)


def _unpartition(site: Site, dense: Dense, weights: Tensor, images: int, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Find every window's tokens on the map by their features, then put their scores there."""
    places = weights.shape[-1]
    maps = [t.movedim(1, -1) if _channels_first(site) and t.ndim == 4 else t for t in dense.rows[site.name]]
    windowed = [t for t in maps if len(t) == len(weights) or t.ndim == 6]  # Twins gives windows axes of their own
    parts = next(t.reshape(-1, t.shape[-1]) for t in windowed if t.shape[:-1].numel() == len(weights) * places)
    for source in (t for t in maps if t.shape[-1] == parts.shape[-1]):
        tokens = source.reshape(images, -1, source.shape[-1])
        scores = _match(tokens, parts.view(images, -1, places, parts.shape[-1]), weights, score)
        if scores is not None:
            return scores / scores.sum(1, keepdim=True)
    raise AssertionError(f"{site.name}: no map holds the tokens of its windows")


def _match(tokens: Tensor, parts: Tensor, weights: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor | None:
    """Return scores (B, N), ``None`` where some token is in no window."""
    scores = tokens.new_zeros(tokens.shape[:2])
    for image, (rows, windows) in enumerate(zip(tokens, parts, strict=True)):
        distance = torch.cdist(windows.flatten(0, 1), rows, compute_mode="donot_use_mm_for_euclid_dist")
        nearest, token = distance.min(1)
        real = (nearest <= 1e-6 * rows.norm(dim=1).mean()).view(windows.shape[:2])
        if len(token[real.flatten()].unique()) != len(rows):
            return None
        for window, valid in enumerate(real):
            a = weights[image * len(real) + window][:, valid]
            scores[image, token.view(real.shape)[window][valid]] = score(a).mean(0)[valid]
    return scores


def _channels_first(site: Site) -> bool:
    return any(isinstance(module, nn.Conv2d) for module in site.module.modules())


def column_mean(weights: Tensor) -> Tensor:
    return weights.mean(-2)


def class_row(weights: Tensor) -> Tensor:
    return weights[..., 0, :]


def check_site(model: nn.Module, images: Tensor, site: Site, dense: Dense, definition: str = "received") -> float:
    """Return the largest error of the observed importance, relative to the mean importance 1 / N."""
    score = {"received": column_mean, "cls": class_row}[definition]
    with torch.no_grad(), observe_attention(model, [site.index], definition=definition) as seen:
        model(images)
    prefix = prefix_tokens(model) if dense.rows[site.name][0].ndim == 3 else 0
    truth = expected(site, dense, len(images), prefix, score)
    got = seen[site.index].scores
    if got.shape != truth.shape:
        raise AssertionError(f"{site.name}: {tuple(got.shape)} instead of {tuple(truth.shape)}")
    return float((got - truth).abs().max() * truth.shape[1])


def build(name: str, *, side: int | None = None, **options: Any) -> tuple[nn.Module, Tensor]:
    """Return a network with random weights, with attention made less uniform, and two images."""
    torch.manual_seed(0)
    model = timm.create_model(name, **options).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            named = any(word in parameter_name for word in ("bias", "pos", "logit_scale"))
            if named or not bool(parameter.any()):
                parameter.add_(0.2 * torch.randn_like(parameter))
    size = timm.data.resolve_model_data_config(model)["input_size"]
    side = side or options.get("img_size", size[-1])
    return model, torch.randn(2, size[0], side, side)


def worst_error(model: nn.Module, images: Tensor, definition: str = "received") -> float:
    """Return the largest error over at most four sites (the first two, the last two) that can be read."""
    sites = readable(model, images)
    with torch.no_grad():
        plain = model(images)
        with explicit_attention(sites) as dense:
            patched = model(images)
    if not torch.allclose(plain, patched, rtol=1e-3, atol=1e-3 * float(plain.abs().max())):
        raise AssertionError("the explicit attention does not give the network's own output")
    chosen = {site.index: site for site in [*sites[:2], *sites[-2:]]}.values()
    return max(check_site(model, images, site, dense, definition) for site in chosen)


def readable(model: nn.Module, images: Tensor) -> list[Site]:
    """Return the attentions whose `received` can be observed."""

    def can(blocks: list[int]) -> bool:
        try:
            with torch.no_grad(), observe_attention(model, blocks):
                model(images)
        except ModelError:
            return False
        return True

    sites = attention_sites(model)
    return sites if can([site.index for site in sites]) else [site for site in sites if can([site.index])]


def works(model: nn.Module, images: Tensor, definition: str) -> str:
    """Return "yes", or why no block, tried from the last, has an importance of this definition."""
    blocks = [site.index for site in attention_sites(model)] if definition in ("received", "received_value") else [-1]
    reason = ""
    for block in reversed(blocks):
        try:
            with torch.no_grad(), observe_attention(model, [block], definition=definition) as seen:
                model(images)
            (importance,) = seen.values()
        except ModelError as error:
            reason = reason or str(error).partition(": use")[0]
            continue
        scores = importance.scores
        healthy = bool(scores.isfinite().all()) and torch.allclose(scores.sum(1), torch.ones(len(scores)), atol=1e-4)
        if not healthy or scores.shape[1] != importance.grid[0] * importance.grid[1]:
            raise AssertionError(f"{definition} gave {tuple(scores.shape)} for the grid {importance.grid}")
        return "yes, inside windows" if importance.windows is not None else "yes"
    return reason or f"{type(model).__name__} has no attention to observe"


def gradient_works(model: nn.Module, images: Tensor) -> str:
    """Return "yes" where the gradient of the output reaches the tokens of the last block but one."""
    with observe_features(model, [-2]) as seen:
        out = model(images)
    (features,) = seen.values()
    scores = gradient_importance(features, out.logsumexp(-1).sum())
    return "yes" if bool(scores.isfinite().all()) else "not finite"


def feature_error(model: nn.Module, images: Tensor) -> float | None:
    """Return the largest difference of `feature_norm` from timm's own feature maps, ``None`` where timm gives none."""
    if not hasattr(model, "forward_intermediates") or any(stage.channels is None for stage in feature_stages(model)):
        return None
    with torch.no_grad(), observe_features(model) as seen:
        maps = model.forward_intermediates(images, norm=False, intermediates_only=True)
    errors = []
    for features, truth in zip(list(seen.values())[-2:], maps[-2:], strict=True):
        tokens = truth.flatten(2).mT if truth.ndim == 4 else truth
        if features.tokens.shape != tokens.shape:
            raise AssertionError(f"{features.name}: {tuple(features.tokens.shape)} instead of {tuple(tokens.shape)}")
        norms = [t.norm(dim=-1) for t in (features.tokens, tokens)]
        errors.append(float((norms[0] - norms[1]).abs().max() / norms[1].mean()))
    return max(errors)


def examine(name: str) -> dict[str, str]:
    """Return one row of the table."""
    model, images = build(name, **MODELS[name])
    row = {"architecture": name, "attentions": str(len(attention_sites(model)))}
    row |= {definition: works(model, images, definition) for definition in (*ATTENTION, *FEATURES)}
    row["grad"] = gradient_works(model, images)
    error = feature_error(model, images)
    row["feature error"] = "–" if error is None else f"{error:.1e}"
    row["error float32"] = row["error float64"] = "–"
    if row["received"].startswith("yes"):
        row["error float32"] = f"{worst_error(model, images):.1e}"
        row["error float64"] = f"{worst_error(model.double(), images.double()):.1e}"
    return row


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(MODELS))
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    rows, reasons = [], {}
    for name in arguments.names:
        row = examine(name)
        for column, cell in row.items():
            if column in (*ATTENTION, *FEATURES, "grad") and not cell.startswith("yes"):
                row[column] = f"no [{reasons.setdefault(cell, len(reasons) + 1)}]"
        rows.append(row)
        print(" | ".join(row.values()), flush=True)
    checked = sum(row["error float32"] != "–" for row in rows)
    lines = [" | ".join(rows[0]), " | ".join("---" for _ in rows[0]), *(" | ".join(row.values()) for row in rows)]
    text = "\n".join(f"| {line} |" for line in lines)
    text += "\n\n" + "\n".join(f"[{number}] {reason}." for reason, number in reasons.items())
    text += f"\n\n{len(rows)} architectures; `received` equals explicit attention on {checked}."
    print("\n" + text)
    if arguments.write:
        arguments.write.write_text(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
