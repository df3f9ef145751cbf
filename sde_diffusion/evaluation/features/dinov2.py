"""DINOv2 features, through transformers (``pip install 'sdediff[dinov2]'``); nothing is downloaded."""

from __future__ import annotations

import hashlib
import os

import torch
from torch import Tensor

from sde_diffusion.evaluation.features.extractor import Extractor, Features, is_image
from sde_diffusion.storage.atomic_folder import pack
from solvers.errors import InputError, MissingPackageError, NotFoundError

DEFAULT_WEIGHTS = "facebook/dinov2-small"
# Mean and standard deviation of ImageNet in [0, 1], with which DINOv2 was trained.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 224


class DINOv2(Extractor):
    """The class token of DINOv2 (Oquab et al. 2023; as features for metrics, Stein et al. 2023); grey becomes RGB.

    Args:
        weights: a folder with config.json and model.safetensors, or the name of a model in the cache of
            huggingface_hub.

    Raises:
        FileNotFoundError: no such model; the message says where to put it.
        ImportError: transformers is not installed.
    """

    name = "dinov2"
    takes_bytes = True
    preprocessing = (
        f"bytes, grey as RGB, resized to {SIDE} x {SIDE} (bicubic, antialiased), ImageNet mean and deviation"
    )

    def __init__(self, weights: str | os.PathLike[str] | None = None) -> None:
        try:
            from transformers import Dinov2Model
        except ImportError as error:
            raise MissingPackageError(
                f"the features 'dinov2' need transformers: pip install 'sdediff[dinov2]' ({error})"
            ) from None
        place = os.fspath(weights or DEFAULT_WEIGHTS)
        try:
            self.network = Dinov2Model.from_pretrained(place, local_files_only=True, use_safetensors=True)
            self.network.train(False)
        except OSError:
            raise NotFoundError(
                f"no DINOv2 at {place}: put its config.json and model.safetensors in a folder and name it with "
                f"weights= (--weights), or fetch it into the cache: hf download {DEFAULT_WEIGHTS}"
            ) from None
        self._sha256 = hashlib.sha256(pack(self.network.state_dict())).hexdigest()

    @property
    def sha256(self) -> str:
        """The hash of the weights."""
        return self._sha256

    def compute(self, x: Tensor) -> Features:
        """The class token after the last norm."""
        if not is_image(tuple(x.shape[1:])):
            raise InputError(f"dinov2 takes images (B, 1 or 3, H, W); got {tuple(x.shape)}")
        rgb = ((x + 1) / 2).expand(-1, 3, -1, -1)
        rgb = torch.nn.functional.interpolate(rgb, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (MEAN, STD))
        return Features(self.network.to(x.device)((rgb - mean) / std).pooler_output.float())
