"""Networks: (x, t, conditions) -> like x. They are independent of diffusion processes.

Every network keeps its constructor arguments in `settings`, so that name and settings rebuild it:

>>> network = build("mlp", shape=(2,), width=32)
>>> build(network.name, **network.settings).settings == network.settings
True
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

from sde_diffusion.networks.autoencoder import Autoencoder, default_multipliers
from sde_diffusion.networks.classifier import Classifier
from sde_diffusion.networks.dit import DiT
from sde_diffusion.networks.mlp import MLP
from sde_diffusion.networks.point_transformer import PointTransformer
from sde_diffusion.networks.principal_components import PrincipalComponents
from sde_diffusion.networks.unet import UNet
from solvers.errors import InputError, choose

ScoreNetwork = UNet | DiT | MLP | PointTransformer
NETWORKS: dict[str, type[ScoreNetwork]] = {"unet": UNet, "dit": DiT, "mlp": MLP, "points": PointTransformer}
"""Networks of score models, by the name that a checkpoint stores."""
Network = ScoreNetwork | Classifier | Autoencoder | PrincipalComponents
DESCRIBED: dict[str, type[Network]] = {
    **NETWORKS,
    Classifier.name: Classifier,
    Autoencoder.name: Autoencoder,
    PrincipalComponents.name: PrincipalComponents,
}
"""Those, the classifier of noisy samples, and autoencoders."""

# Limits of settings: a typing error, or a file from elsewhere, must not allocate terabytes.
LARGEST = {
    "width": 65_536,
    "depth": 1_000,
    "channels": 16_384,
    "blocks": 100,
    "heads": 4_096,
    "patch": 4_096,
    "classes": 1_000_000,
    "context": 1_000_000,
    "vector": 1_000_000,
    "tokens": 1_000_000,
    "latent_channels": 65_536,
    "codes": 1_000_000,
    "components": 1_000_000,
}
LARGEST_SAMPLE = 2**28
LARGEST_MULTIPLIER = 1_000

__all__ = [
    "DESCRIBED",
    "MLP",
    "NETWORKS",
    "SIZE_NAMES",
    "Autoencoder",
    "Classifier",
    "DiT",
    "PointTransformer",
    "PrincipalComponents",
    "UNet",
    "build",
    "default_network",
    "default_settings",
    "default_size",
]


def build(name: str, **settings: Any) -> Network:
    """Return the network of this name with these settings.

    Raises:
        ValueError: an unknown name, or settings that do not fit one another.
        TypeError: a setting that the network does not have.

    >>> build("mpl", shape=(2,))
    Traceback (most recent call last):
    ...
    solvers.errors.InputError: unknown network 'mpl'; did you mean 'mlp'? Choices: dit, mlp, points, unet
    """
    kind = known_network(name)
    for setting, most in LARGEST.items():
        value = settings.get(setting)
        if isinstance(value, int) and value > most:
            raise InputError(f"{setting} of a network is at most {most:,}; got {value:,}")
    levels = settings.get("multipliers", ())
    if isinstance(levels, (list, tuple)) and any(isinstance(m, int) and m > LARGEST_MULTIPLIER for m in levels):
        raise InputError(f"multipliers of a network are at most {LARGEST_MULTIPLIER:,}; got {list(levels)}")
    dropout = settings.get("dropout", 0.0)
    if isinstance(dropout, (int, float)) and not 0 <= dropout <= 1:
        raise InputError(f"dropout is a probability, from 0 to 1; got {dropout:g}")
    for what in ("shape", "image"):
        shape = settings.get(what)
        if isinstance(shape, (list, tuple)) and math.prod(shape) > LARGEST_SAMPLE:
            raise InputError(
                f"a sample or image of a network has at most {LARGEST_SAMPLE:,} values; got the shape {tuple(shape)}"
            )
    return kind(**settings)


def known_network(name: str) -> type[Network]:
    """Return the class of a network; the message for an unknown name lists those of score models."""
    return DESCRIBED[name] if name in DESCRIBED else choose(name, NETWORKS, "network")


# up to this side: channels, multipliers, attention at levels of at most this height, other settings
SIZES: list[tuple[float, int, tuple[int, ...], int, dict[str, Any]]] = [
    (12, 32, (1, 2), 4, {"blocks": 1}),
    (28, 32, (1, 2, 2), 7, {"blocks": 2}),
    (math.inf, 128, (1, 2, 2, 2), 16, {"blocks": 2, "dropout": 0.1}),
]


SIZE_NAMES = ("small", "medium", "large")
"""Sizes of a network for one shape of data."""
DIT_SIZES: dict[str, dict[str, Any]] = {
    "small": {"width": 192, "depth": 6, "heads": 3},
    "medium": {"width": 384, "depth": 12, "heads": 6},
    "large": {"width": 768, "depth": 12, "heads": 12},
}


def default_size(shape: Sequence[int], device: str) -> str:
    """Return the name of the size that suits samples of this shape and a device.

    Images of more than 28 pixels on a side get the large U-Net, of 28 million parameters, on a GPU alone: on a CPU one
    update of it takes some 15 s, and the small one is trained in the time of a coffee to an afternoon.

    >>> default_size((1, 28, 28), "cpu"), default_size((3, 32, 32), "cpu"), default_size((3, 32, 32), "cuda")
    ('medium', 'small', 'large')
    """
    if len(shape) != 3 or max(shape[1:]) <= SIZES[-2][0]:
        return "medium"
    return "small" if device == "cpu" else "large"


def _resized(name: str, size: str, shape: tuple[int, ...], settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that a size changes; settings are those of medium, or of large for images above 28 pixels."""
    step = SIZE_NAMES.index(size) - 1
    if name == "dit":
        return DIT_SIZES[size]
    if name == "points":
        return {"width": 2 ** (6 + step)}
    if name == "mlp":
        return {"width": max(16, int(settings["width"] * 2.0**step))}
    if len(shape) == 3 and max(shape[1:]) > SIZES[-2][0]:
        channels, blocks = {"small": (32, 1), "medium": (64, 2), "large": (128, 2)}[size]
        return {"channels": channels, "blocks": blocks, "dropout": 0.1 if size == "large" else 0.0}
    return {"channels": int(settings["channels"] * 2.0**step)}


def default_settings(
    shape: Sequence[int], name: str | None = None, size: str | None = None
) -> tuple[str, dict[str, Any]]:
    """Return name and settings of the default network for samples of this shape; no network is built.

    Args:
        shape: shape of one sample.
        name: a name in ``NETWORKS``: if it is not the default one, the settings are those of its constructor.
        size: a name in ``SIZE_NAMES``; by default medium, and large for images of more than 28 pixels on a side.

    Raises:
        ValueError: an unknown name.

    >>> default_settings((2,))
    ('mlp', {'shape': [2], 'width': 128, 'depth': 4, 'dropout': 0.0, 'embedding': 'log', 'classes': None, \
'context': None, 'variance': False, 'vector': None, 'required': False, 'frequencies': 0, 'bandwidth': 4.0})
    """
    shape = tuple(shape)
    if name == Autoencoder.name:
        channels = 16 * 2 ** SIZE_NAMES.index(size or "medium")
        others: dict[str, Any] = {
            "multipliers": default_multipliers(shape),
            "blocks": 1,
            "latent_channels": 4,
            "codes": 512,
        }
        return name, {"shape": list(shape), "bottleneck": "kl", "channels": channels, **others}
    usual, chosen = _sized(shape)
    if name not in (None, usual):
        usual, chosen = str(name), {"embedding": "log"}
    parameters = inspect.signature(known_network(usual)).parameters.values()
    settings = {p.name: list(p.default) if isinstance(p.default, tuple) else p.default for p in parameters}
    settings = {**settings, "shape": list(shape), **chosen}
    if size is not None:
        settings |= _resized(usual, choose(size, {known: known for known in SIZE_NAMES}, "size"), shape, settings)
    return usual, settings


def _sized(shape: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    """The network for a shape, and its settings that are not those of the constructor."""
    if len(shape) == 2 and shape[0] >= 1 and shape[1] >= 32:
        multipliers = [1, 2, 2, 2]
        return "unet", {"channels": 32, **leveled(shape, multipliers, 32), "embedding": "log"}
    if len(shape) == 4 and min(shape) >= 1:
        return "unet", {"channels": 32, **leveled(shape, [1, 2, 2], 8), "blocks": 1, "embedding": "log"}
    if len(shape) != 3 or min(shape) < 1:
        return "mlp", {"width": min(1024, max(128, 2 * math.prod(shape))), "embedding": "log"}
    row = next(row for row in SIZES if max(shape[1:]) <= row[0])
    _, channels, multipliers_of_row, tallest, settings = row
    sizes = leveled(shape, list(multipliers_of_row), tallest)
    return "unet", {"channels": channels, **sizes, "embedding": "log", **settings}


def leveled(shape: Sequence[int], multipliers: Sequence[int], tallest: int) -> dict[str, list[int]]:
    """Return the multipliers of a U-Net as far as the sample can be halved, and the levels with attention.

    Args:
        shape: of one sample. Its smallest side is at least 2 on the deepest level, but for padding.
        multipliers: those wanted.
        tallest: the largest height of a level with attention.

    >>> leveled((3, 36, 31), [1, 2, 2, 2], 16), leveled((1, 5, 64), [1, 2, 2], 16)
    ({'multipliers': [1, 2, 2, 2], 'attention': [10, 5]}, {'multipliers': [1, 2], 'attention': [6, 3]})
    """
    smallest = min(shape[1:])
    levels = [level for level in range(len(multipliers)) if level == 0 or smallest >= 2 ** (level + 1)]
    return {
        "multipliers": list(multipliers[: len(levels)]),
        "attention": attended(shape, len(levels), tallest),
    }


def attended(shape: Sequence[int], levels: int, tallest: int) -> list[int]:
    """Return the heights of a U-Net's levels that are at most ``tallest``.

    >>> attended((1, 28, 28), 3, 7), attended((1, 6, 6), 3, 4)
    ([7], [4, 2])
    """
    bottom = -(-shape[1] // 2 ** (levels - 1))
    heights = [bottom << (levels - 1 - level) for level in range(levels)]
    return [height for height in heights if height <= tallest]


def default_network(shape: Sequence[int], classes: int | None = None) -> UNet | MLP:
    """Return a new network of a default size for samples of this shape.

    Images (C, H, W) get a U-Net with the levels of its row in `SIZES`, as far as H and W can be
    halved (``leveled``; the network pads odd sides): 8 x 8 digits one of 0.34 million parameters,
    28 x 28 one of 1.1 million, 32 x 32 and more one of 28 million, in the proportions of Ho et al. 2020
    (appendix B). Signals (C, L) of 32 values and more get a U-Net in one dimension, volumes (C, D, H, W)
    one in three. All else gets an MLP, twice as wide as the sample is long, between 128 and 1024. All
    use a low-frequency embedding of log time: its slow variation lets solvers converge with few steps. A
    network that predicts "edm" receives log(rho) / 4 instead of t, and ``default_model`` gives it the
    sinusoidal embedding.

    Raises:
        ValueError: a shape with no sizes or a size below 1.

    >>> default_network((1, 8, 8)).settings["attention"], default_network((2,)).settings["width"]
    ([4], 128)
    """
    name, settings = default_settings(shape)
    network: UNet | MLP = build(name, **{**settings, "classes": classes})  # type: ignore[assignment]
    return network
