"""A file of weights for Inception is tensors and nothing else, whatever its hash begins with."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from sde_diffusion.evaluation.features import inception
from sde_diffusion.evaluation.features.inception import find_weights, plain_weights


class Attack:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("PWNED",)


def zipped(payload: bytes) -> bytes:
    """What torch.save would write, with another pickle in it."""
    good, out = io.BytesIO(), io.BytesIO()
    torch.save({"w": torch.zeros(2)}, good)
    with zipfile.ZipFile(good) as parts, zipfile.ZipFile(out, "w") as new:
        for part in parts.infolist():
            new.writestr(part.filename, payload if part.filename.endswith("data.pkl") else parts.read(part))
    return out.getvalue()


@pytest.mark.parametrize("form", ["pickle", "zip", "tensors of a class"])
def test_a_pickle_is_not_run(form: str) -> None:
    payload = pickle.dumps({"w": Attack()}, protocol=2)
    if form == "pickle":
        Path("w.pth").write_bytes(payload)
    elif form == "zip":
        Path("w.pth").write_bytes(zipped(payload))
    else:
        torch.save({"w": torch.zeros(2), "b": Attack()}, "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth holds no plain tensors and is not loaded"):
        plain_weights(Path("w.pth"))
    assert not Path("PWNED").exists()


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"w": 3}, torch.zeros(2)])
def test_other_content_is_refused(content: Any) -> None:
    torch.save(content, "w.pth")
    with pytest.raises(ValueError, match="its content is no table of tensors"):
        plain_weights(Path("w.pth"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02", bytes(1000)])
def test_a_torn_file_is_one_sentence(content: bytes) -> None:
    Path("w.pth").write_bytes(content)
    with pytest.raises(ValueError, match="holds no plain tensors") as raised:
        plain_weights(Path("w.pth"))
    assert "\n" not in str(raised.value)


def test_sizes_have_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inception, "MOST_BYTES", 2**20)
    with zipfile.ZipFile("bomb.pth", "w", zipfile.ZIP_DEFLATED) as parts:
        parts.writestr("archive/data.pkl", bytes(2**22))
    assert Path("bomb.pth").stat().st_size < 10_000
    with pytest.raises(ValueError, match=r"it unpacks to 4,194,304 bytes, more than 1,048,576"):
        plain_weights(Path("bomb.pth"))
    Path("large.pth").write_bytes(bytes(2**21))
    with pytest.raises(ValueError, match=r"it has 2,097,152 bytes, more than 1,048,576"):
        find_weights("large.pth")


def test_a_pipe_and_another_file_are_refused() -> None:
    Path("w.pth").write_bytes(b"others")
    with pytest.raises(ValueError, match="its SHA-256 begins with"):
        find_weights("w.pth")
    if hasattr(os, "mkfifo"):
        os.mkfifo("pipe.pth")
        with pytest.raises(FileNotFoundError, match=r"no Inception weights at pipe\.pth"):
            find_weights("pipe.pth")


def test_plain_tensors_are_stored_anew() -> None:
    torch.save({"w": torch.arange(4.0)}, "w.pth")
    found = torch.load(plain_weights(Path("w.pth")), weights_only=True)
    assert torch.equal(found["w"], torch.arange(4.0))
