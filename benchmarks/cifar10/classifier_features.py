"""Features where no Inception weights are given: those of a classifier of these images that is trained here."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.cifar10.images import flipped
from sde_diffusion.evaluation.features import CustomExtractor


class Classifier(nn.Module):
    """Convolutions with three halvings; its features are 2 * width means over space."""

    def __init__(self, channels: int, classes: int = 10, width: int = 64) -> None:
        """Build the layers."""
        super().__init__()

        def block(enter: int, leave: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(enter, leave, 3, padding=1, bias=False), nn.BatchNorm2d(leave), nn.ReLU(inplace=True),
                nn.Conv2d(leave, leave, 3, padding=1, bias=False), nn.BatchNorm2d(leave), nn.ReLU(inplace=True),
                nn.AvgPool2d(2),
            )  # fmt: skip

        wide = 2 * width
        self.body = nn.Sequential(block(channels, width), block(width, wide), block(wide, wide))
        self.head = nn.Linear(wide, classes)

    def forward(self, x: Tensor) -> Tensor:
        """The features (B, 2 * width)."""
        return self.body(x).mean((2, 3))


def fit(network: Classifier, x: Tensor, labels: Tensor, epochs: int) -> None:
    """Train on images in bytes, in batches of 256."""
    updates, size = max(1, epochs * len(x) // 256), min(256, len(x))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=updates)
    for _ in range(updates):
        index = torch.randint(len(x), (size,), device=x.device)
        images = flipped(x[index])
        loss = nn.functional.cross_entropy(network.head(network(images)), labels[index])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval().requires_grad_(False)


@torch.no_grad()
def accuracy(network: Classifier, x: Tensor, labels: Tensor) -> float:
    """Share of images in bytes whose most probable class is right."""
    parts = [network.head(network(part.float() / 127.5 - 1)).argmax(1) for part in torch.split(x, 1000)]
    return float((torch.cat(parts) == labels).double().mean())


def classifier(x: Tensor, labels: Tensor, epochs: int, seed: int = 0) -> tuple[CustomExtractor, float]:
    """An extractor and its accuracy on the training images, which are in bytes."""
    torch.manual_seed(seed)
    network = Classifier(x.shape[1]).to(x.device)
    fit(network, x, labels, epochs)
    return CustomExtractor(network, "classifier trained here"), accuracy(network, x, labels)
