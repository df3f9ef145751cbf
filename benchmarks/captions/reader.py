"""A classifier that reads the digits and colours of a pair: what a sample shows, compared with its caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sde_diffusion.data import Data
from sde_diffusion.data.captioned.digit_pairs import COLOURS, VOCABULARY, Pair, pair_of
from sde_diffusion.evaluation.features.pretrained_classifier import Network
from sde_diffusion.text import to_caption

BATCH, RATE = 100, 2e-3


def pairs_of(data: Data) -> list[Pair]:
    """What the images of a set show, by their captions."""
    assert data.condition is not None
    return [pair_of(to_caption(row, VOCABULARY)) for row in data.condition.values]


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """The left and right halves of images (N, 3, S, 2 S)."""
    return x[..., : x.shape[-2]], x[..., x.shape[-2] :]


def grey(half: Tensor) -> Tensor:
    """The brightest channel of each pixel, stretched to [-1, 1] for each image and padded to a multiple of 4."""
    light = half.amax(1, keepdim=True) + 1
    image = 2 * light / light.amax((1, 2, 3), keepdim=True).clamp_min(1e-3) - 1
    side = -half.shape[-1] % 4
    return nn.functional.pad(image, (0, side, 0, side), value=-1.0)


def trained_reader(data: Data, epochs: int, seed: int = 0) -> Network:
    """A classifier of the digit in a half, trained on both halves of a set."""
    torch.manual_seed(seed)
    pairs = pairs_of(data)
    x = torch.cat([grey(half) for half in halves(data.batch(slice(None)))])
    labels = torch.tensor([p.left for p in pairs] + [p.right for p in pairs])
    network = Network(x.shape[-1])
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.05)
    steps = epochs * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(epochs):
        for index in torch.split(torch.randperm(len(x))[: len(x) // BATCH * BATCH], BATCH):
            loss = nn.functional.cross_entropy(network(x[index])[1], labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


class Reading(NamedTuple):
    """What was right, one entry for each image.

    Attributes:
        digits: both digits are those of the caption, each in its place.
        colours: every colour that the caption names is right; None where it names none.
    """

    digits: list[bool]
    colours: list[bool | None]


@torch.no_grad()
def read(network: Network, x: Tensor, pairs: Sequence[Pair]) -> Reading:
    """Compare images (N, 3, S, 2 S) in [-1, 1] with what they should show."""
    palette = torch.tensor(list(COLOURS.values())).float()
    palette = palette / palette.norm(dim=1, keepdim=True)
    digits, hues = [], []
    for half in halves(x):
        digits.append(network(grey(half))[1].argmax(1))
        light = (half + 1).clamp_min(0).flatten(2)
        weight = light.amax(1, keepdim=True).square()
        mean = (light * weight).sum(2)
        hues.append((mean / mean.norm(dim=1, keepdim=True).clamp_min(1e-6) @ palette.T).argmax(1))
    right = [int(digits[0][k]) == p.left and int(digits[1][k]) == p.right for k, p in enumerate(pairs)]
    colours: list[bool | None] = []
    for k, p in enumerate(pairs):
        asked = [(c, int(hues[h][k])) for h, c in enumerate((p.left_colour, p.right_colour)) if c is not None]
        colours.append(all(c == found for c, found in asked) if asked else None)
    return Reading(right, colours)
