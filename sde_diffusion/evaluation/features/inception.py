"""Inception-v3 as published figures use it, through torch-fidelity (``pip install 'sdediff[inception]'``).

Nothing is downloaded. The weights are the file that torch-fidelity, pytorch-fid and their relatives share, known by its
SHA-256; another file would give figures that compare with nothing, and is refused before it is opened.
"""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from pickle import UnpicklingError  # what torch.load raises; nothing is unpickled here

import torch
from torch import Tensor

from sde_diffusion.data.pixels import to_uint8
from sde_diffusion.evaluation.features.extractor import Extractor, Features, is_image
from sde_diffusion.storage.atomic_folder import sha256
from solvers.errors import InputError, MissingPackageError, NotFoundError

FILE = "weights-inception-2015-12-05-6726825d.pth"
HASH = "6726825d"  # how the SHA-256 of the file begins; 32 bits, so the content is checked too
MOST_BYTES = 2**28  # of the file and of what it unpacks to; the published one has 96 million


def find_weights(path: str | os.PathLike[str] | None = None) -> Path:
    """The weights at a path, or in the cache of torch.hub where torch-fidelity keeps them.

    Raises:
        FileNotFoundError: no such file or folder exists; the message says where to put it.
        ValueError: another file.
    """
    found = Path(torch.hub.get_dir()) / "checkpoints" / FILE if path is None else Path(path)
    if not found.is_file():
        raise NotFoundError(
            f"no Inception weights at {found}: put {FILE} there (release v0.2.0 of torch-fidelity has it), "
            "or name another place with weights= (--weights)"
        )
    if (size := found.stat().st_size) > MOST_BYTES:
        raise InputError(f"{found} is not {FILE}: it has {size:,} bytes, more than {MOST_BYTES:,}")
    digest = sha256(found)
    if not digest.startswith(HASH):
        raise InputError(f"{found} is not {FILE}: its SHA-256 begins with {digest[:8]}, not with {HASH}")
    return found


def plain_weights(path: Path) -> io.BytesIO:
    """The tensors of a file, stored anew: torch-fidelity unpickles what it is given without limits.

    Raises:
        ValueError: the file holds something other than tensors by name, or unpacks to more than ``MOST_BYTES``.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as parts:
                if (size := sum(part.file_size for part in parts.infolist())) > MOST_BYTES:
                    raise InputError(f"it unpacks to {size:,} bytes, more than {MOST_BYTES:,}")
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
            raise InputError("its content is no table of tensors")
    except (UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} holds no plain tensors and is not loaded ({reason})") from None
    plain = io.BytesIO()
    torch.save(tensors, plain)
    plain.seek(0)
    return plain


class Inception(Extractor):
    """The 2048 pooled values of Inception-v3 and its class probabilities; grey images become RGB.

    Args:
        weights: the file; torch-fidelity's cache by default.

    Raises:
        FileNotFoundError, ValueError: as ``find_weights``.
        ImportError: torch-fidelity is not installed.
    """

    name = "inception"
    takes_bytes = True
    preprocessing = "bytes, grey as RGB, resized to 299 x 299 as TensorFlow 1 does, (x - 128) / 128"

    def __init__(self, weights: str | os.PathLike[str] | None = None) -> None:
        path = find_weights(weights)
        try:
            from torch_fidelity import FeatureExtractorInceptionV3
        except ImportError as error:
            raise MissingPackageError(
                f"the features 'inception' need torch-fidelity: pip install 'sdediff[inception]' ({error})"
            ) from None
        self._sha256 = sha256(path)
        self.network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=plain_weights(path)
        )

    @property
    def sha256(self) -> str:
        """The hash of the weights' file."""
        return self._sha256

    def compute(self, x: Tensor) -> Features:
        """The pooled values, and the probabilities by the logits without bias, as the inception score takes them."""
        if not is_image(tuple(x.shape[1:])):
            raise InputError(f"inception takes images (B, 1 or 3, H, W); got {tuple(x.shape)}")
        rgb = to_uint8(x).expand(-1, 3, -1, -1)
        features, logits = self.network.to(x.device)(rgb)
        return Features(features, logits.softmax(1))
