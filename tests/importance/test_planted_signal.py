"""A label that depends on known patches: after training, importance and deletion curves must point at them."""

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rskd.events import drain
from rskd.importance import gradient_importance, observe_attention, observe_features, rank_tokens
from rskd.importance.deletion import deletion_check

SIDE, PATCH, PLANTED = 64, 8, 4
GRID = (SIDE // PATCH, SIDE // PATCH)
CLASSES = 4


def planted(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, labels and (B, N) the four patches whose stripes are the label.

    All other patches carry random blocks of the same size, range and energy, so that contrast alone tells nothing.
    """
    blocks = torch.randint(2, (count, 1, SIDE // 2, SIDE // 2), generator=generator) * 4.0 - 2
    images = F.interpolate(blocks, scale_factor=2).expand(-1, 3, -1, -1).clone()
    labels = torch.randint(CLASSES, (count,), generator=generator)
    where = torch.rand(count, GRID[0] * GRID[1], generator=generator).argsort(1)[:, :PLANTED]
    y, x = torch.meshgrid(torch.arange(PATCH) // 2, torch.arange(PATCH) // 2, indexing="ij")
    stripes = torch.stack([(t % 2) * 4.0 - 2 for t in (y, x, x + y, x // 2 + y // 2)])
    for image, label, tokens in zip(images, labels, where, strict=True):
        for token in tokens.tolist():
            top, left = token // GRID[1] * PATCH, token % GRID[1] * PATCH
            image[:, top : top + PATCH, left : left + PATCH] = stripes[label]
    images += 0.3 * torch.randn(images.shape, generator=generator)
    truth = torch.zeros(count, GRID[0] * GRID[1], dtype=torch.bool).scatter(1, where, True)
    return images, labels, truth


def untrained() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=SIDE, patch_size=PATCH, embed_dim=48, depth=3, num_heads=3, num_classes=CLASSES
    )


def trained(generator: torch.Generator, *, steps: int) -> nn.Module:
    """Return a small transformer that names the stripes, trained on fresh images at every step."""
    torch.manual_seed(0)
    model = untrained()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, steps)
    for _ in range(steps):
        images, labels, _ = planted(32, generator)
        optimiser.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimiser.step()
        schedule.step()
    return model.eval()


def importances(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return (B, N) by every definition, of every block where it has one."""
    found: dict[str, Tensor] = {}
    for definition in ("received", "received_value", "cls", "cls_value", "rollout", "feature_norm", "at"):
        with torch.no_grad(), observe_attention(model, None, definition=definition) as seen:
            model(images)
        found |= {f"{definition}, block {block}": importance.scores for block, importance in seen.items()}
    for block in range(len(model.blocks) - 1):
        with observe_features(model, [block]) as features:
            logits = model(images)
        loss = F.cross_entropy(logits, logits.argmax(1), reduction="sum")
        found[f"grad, block {block}"] = gradient_importance(features[block], loss)
    return found


@pytest.mark.slow
def test_importance_and_deletion_point_at_the_planted_patches():
    generator = torch.Generator().manual_seed(0)
    model = trained(generator, steps=500)
    images, labels, truth = planted(64, generator)
    with torch.no_grad():
        assert (model(images).argmax(1) == labels).float().mean() >= 0.95
    found = importances(model, images)
    recalls = {name: recall(scores, truth) for name, scores in found.items()}
    torch.manual_seed(0)
    before = {name: recall(scores, truth) for name, scores in importances(untrained().eval(), images).items()}
    print(f"\ntop-{PLANTED} recall after training, before training; chance {PLANTED / truth.shape[1]:.3f}")
    for name, value in sorted(recalls.items(), key=lambda item: -item[1]):
        print(f"{name:<26} {value:.3f}  {before[name]:.3f}")
    best = max(recalls, key=recalls.get)
    assert recalls[best] >= 0.9
    assert before[best] <= 0.5
    ranking = rank_tokens(found[best], GRID)
    task = deletion_check(model, images, ranking=ranking, generator=torch.Generator().manual_seed(1), steps=16)
    check = drain(task)
    for name, gain in (("deletion", check.deletion_gain), ("insertion", check.insertion_gain)):
        print(f"{best}: {name} {gain.mean:.3f} ({gain.low:.3f} … {gain.high:.3f}), {gain.verdict}")
        assert gain.verdict == "better than chance"


def recall(scores: Tensor, truth: Tensor) -> float:
    return float(truth.gather(1, rank_tokens(scores, GRID).order[:, :PLANTED]).float().mean())
