r"""Forward processes dx = f(t) x dt + g(t) dw and the Gaussian paths x_t = alpha x_0 + sigma eps they define.

    f(t) = d log alpha / dt,    g(t)^2 = d sigma^2/dt - 2 f sigma^2,    lambda(t) = log(alpha / sigma).

t runs over [0, 1]: 0 is data (alpha = 1, sigma = 0) and 1 is noise. Every function here takes a time (or a
tensor of times) of any shape and returns float64 of that shape, accurate to rounding near both ends:
1 - alpha^2 is never formed by subtraction.

Sources: Song et al. 2021 (VP, sub-VP, VE; eq. 9-12 and 29-32), Nichol & Dhariwal 2021 (cosine, eq. 17),
Karras et al. 2022 (sigma = t), Lipman et al. 2023 and Liu et al. 2023 (straight path).
"""

from __future__ import annotations

from typing import Any

from sde_diffusion.sde.base import SDE
from sde_diffusion.sde.ddpm import DDPM
from sde_diffusion.sde.flow import Flow
from sde_diffusion.sde.ve import EDM, VESDE
from sde_diffusion.sde.vp import VPSDE, CosineVPSDE, SubVPSDE
from solvers.errors import InputError, choose

__all__ = [
    "DDPM",
    "EDM",
    "SDE",
    "SDES",
    "VESDE",
    "VPSDE",
    "CosineVPSDE",
    "Flow",
    "SubVPSDE",
    "make_sde",
    "sde_name",
]

SDES: dict[str, type[SDE]] = {
    "vp": VPSDE,
    "cosine": CosineVPSDE,
    "subvp": SubVPSDE,
    "ve": VESDE,
    "edm": EDM,
    "flow": Flow,
    "ddpm": DDPM,
}
"""Forward processes by name."""


def make_sde(name: str, **settings: Any) -> SDE:
    """An SDE by its name in ``SDES``.

    >>> make_sde("vp", beta_max=10.0)
    VPSDE(beta_min=0.1, beta_max=10.0)
    """
    return choose(name, SDES, "SDE")(**settings)


def sde_name(sde: SDE) -> str:
    """The name of an SDE in ``SDES``.

    Raises:
        ValueError: a class outside ``SDES``, which a checkpoint cannot name.

    >>> sde_name(VESDE())
    've'
    """
    for name, kind in SDES.items():
        if type(sde) is kind:
            return name
    raise InputError(
        f"{type(sde).__name__} is not in SDES, so a checkpoint could not name it; register it: "
        f"sde_diffusion.sde.SDES['my-sde'] = {type(sde).__name__}"
    )
