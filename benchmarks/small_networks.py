"""Small networks on small images, trained in one batch, for the training set of ``benchmarks.design``.

    python -m benchmarks.small_networks OUT --data-dir DATA [--steps 900]

Perceptrons with the preconditioning of Karras et al. 2022: five on images of 8 x 8 (digits of scikit-learn, the same
enlarged with most pixels black or white, letters of matplotlib's fonts, and CIFAR-10 images
in grey, whole and cut out), and three on 28 x 28 (the second, third and last). OUT is one safetensors file. No table
reports results on these images or networks.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import avg_pool2d, silu

from benchmarks.design_data import grey, letters, strokes

WIDTH, LAYERS, TOLD = 192, 3, 9
NAMES = {
    "small": ("digits", "strokes", "letters", "grey", "grey, cut out"),
    "large": ("strokes, 28", "letters, 28", "grey, 28"),
}


def pictures(data_dir: Path) -> dict[str, list[Tensor]]:
    """The data of each network, (n, d) in [-1, 1]."""
    whole = grey(data_dir, 16)
    small = [
        torch.from_numpy(load_digits().images[:1200] / 16)[:, None],
        avg_pool2d(strokes(16), 2),
        avg_pool2d(letters(16, 1500, seed=5).double(), 2),
        avg_pool2d(whole, 2),
        whole[:, :, 4:12, 4:12],
    ]
    large = [strokes(28), letters(28, 1500, seed=6).double(), grey(data_dir, 28)[:5000]]
    return {k: [(2 * x.double() - 1).flatten(1).float() for x in v] for k, v in (("small", small), ("large", large))}


@dataclass(frozen=True)
class SmallNetworks:
    """The networks, with the interface of ``benchmarks.exact_family.ModelSet``."""

    weights: tuple[Tensor, ...]
    std: Tensor
    count: Tensor
    names: tuple[str, ...]

    def denoise(self, z: Tensor, rho: Tensor) -> Tensor:
        """D for z (P, B, d) at rho, (P, 1, 1) or 0-d."""
        d = self.std[:, None, None]
        n2 = rho**2 + d**2
        log = torch.log(rho / d).clamp(-7, 8) * torch.ones_like(z[..., :1])
        told = torch.cat(
            [log / 4, *((f * log).sin() for f in (0.5, 1, 2, 3)), *((f * log).cos() for f in (0.5, 1, 2, 3))], 2
        )
        h = torch.cat([z / n2.sqrt(), told], 2)
        for i, w in enumerate(self.weights[:-1]):
            new = silu(torch.bmm(h, w[:, :-1]) + w[:, -1:])
            h = h + new if i else new
        out = torch.bmm(h, self.weights[-1][:, :-1]) + self.weights[-1][:, -1:]
        return d**2 / n2 * z + rho * d / n2.sqrt() * out

    def rms(self, x: Tensor) -> Tensor:
        """Root mean square over the dimensions, (P, B)."""
        return (x**2).mean(2).add(1e-24).sqrt()

    def to(self, dtype: torch.dtype) -> SmallNetworks:
        """The networks in another dtype."""
        return SmallNetworks(
            tuple(w.to(dtype) for w in self.weights), self.std.to(dtype), self.count.to(dtype), self.names
        )

    @property
    def fingerprint(self) -> str:
        """A hash of the networks, twelve hex digits."""
        digest = hashlib.sha256()
        for w in self.weights:
            digest.update(w.double().numpy().tobytes())
        return digest.hexdigest()[:12]

    def noises(self, n: int, seed: int) -> Tensor:
        """Normal noise, (P, n, d)."""
        g = torch.Generator().manual_seed(seed)
        return torch.randn(len(self.names), n, self.count.shape[1], dtype=torch.float64, generator=g)

    def part(self, which: list[int]) -> SmallNetworks:
        """Some of the networks."""
        index = torch.as_tensor(which)
        return SmallNetworks(
            tuple(w[index] for w in self.weights),
            self.std[index],
            self.count[index],
            tuple(self.names[i] for i in which),
        )


def load(path: Path) -> dict[str, SmallNetworks]:
    """The stored networks, small and large."""
    stored = load_file(path)
    out = {}
    for size, names in NAMES.items():
        weights = tuple(stored[f"{size}.{i}"] for i in range(LAYERS + 1))
        out[size] = SmallNetworks(weights, stored[f"{size}.std"], torch.ones(len(names), weights[-1].shape[2]), names)
    return out


def train(data: list[Tensor], names: tuple[str, ...], steps: int, batch: int = 64) -> SmallNetworks:
    """Least squares with the weights of Karras et al. 2022; the average of the last half of the run."""
    torch.manual_seed(0)
    d = data[0].shape[1]
    sizes = [d + TOLD, *[WIDTH] * LAYERS, d]
    weights = [torch.randn(len(data), a + 1, b) / math.sqrt(a) for a, b in itertools.pairwise(sizes)]
    weights[-1] *= 0.1
    std = torch.stack([x.std() for x in data])
    count, mean = torch.ones(len(data), d), [w.clone() for w in weights]
    for w in weights:
        w.requires_grad_()
    adam = torch.optim.Adam(weights, lr=2e-3)
    plan = torch.optim.lr_scheduler.OneCycleLR(adam, 3e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        x0 = torch.stack([x[torch.randint(len(x), (batch,))] for x in data])
        rho = torch.exp(1.5 * torch.randn(len(data), batch, 1) - 0.5)
        model = SmallNetworks(tuple(weights), std, count, names)
        size = std[:, None, None]
        error = model.denoise(x0 + rho * torch.randn_like(x0), rho) - x0
        loss = (error**2 * (rho**2 + size**2) / (rho * size) ** 2).mean((1, 2))
        adam.zero_grad()
        loss.sum().backward()
        adam.step()
        plan.step()
        share = 0.995 if step > steps // 4 else 0.0
        with torch.no_grad():
            for average, w in zip(mean, weights, strict=True):
                average.lerp_(w, 1 - share)
        if step % 100 == 99:
            print(step + 1, [round(v, 3) for v in loss.tolist()], flush=True)
    return SmallNetworks(tuple(mean), std, count, names)


def main() -> None:
    """Train and store."""
    parser = argparse.ArgumentParser(prog="benchmarks.small_networks", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=900)
    args = parser.parse_args()
    torch.set_num_threads(1)
    content = {}
    for size, data in pictures(args.data_dir).items():
        made = train(data, NAMES[size], args.steps)
        content |= {f"{size}.{i}": w.detach().contiguous() for i, w in enumerate(made.weights)}
        content[f"{size}.std"] = made.std
    save_file(content, args.out)


if __name__ == "__main__":
    main()
