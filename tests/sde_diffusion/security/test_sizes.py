"""Small files and options that ask for much memory or time. Every case worked once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sde_diffusion.files import reading
from tests.command import refused


def header(shape: tuple[int, ...]) -> bytes:
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (117 - len(text)) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize("shape", [(10**12, 2), (10**25, 2), (2**63, 2), (-1, 2)])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_header_cannot_ask_for_more_than_the_file_has(shape: tuple[int, ...], suffix: str) -> None:
    content = header(shape) + bytes(64)
    if suffix == "npz":
        import zipfile

        with zipfile.ZipFile("x.npz", "w") as archive:
            archive.writestr("x.npy", content)
    else:
        Path("x.npy").write_bytes(content)
    for command in (["inspect", f"x.{suffix}"], ["train", "--data", f"x.{suffix}"], ["prepare", f"x.{suffix}"]):
        assert "cannot read" in refused(*command)


def test_an_archive_that_unpacks_to_gigabytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    monkeypatch.setattr(reading, "UNPACKED", 2**20)
    with zipfile.ZipFile("x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header((2**20, 1)) + bytes(2**23))
    assert "unpacks to" in refused("inspect", "x.npz")


@pytest.mark.parametrize("rest", [b"\x01\x00\x76\x00" + b"[" * 117 + b"\n", b"\x09\x00", b""])
def test_a_torn_header_is_one_sentence(rest: bytes) -> None:
    Path("x.npy").write_bytes(b"\x93NUMPY" + rest)
    assert "cannot read x.npy as numbers" in refused("inspect", "x.npy")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_pipes_and_devices_are_refused() -> None:
    os.mkfifo("fifo.npy")
    Path("images").mkdir()
    os.mkfifo("images/a.png")
    os.mkfifo("m.safetensors")
    os.mkfifo("c.json")
    Path("zero.npy").symlink_to("/dev/zero")
    for args in (
        ("inspect", "fifo.npy"), ("train", "--data", "fifo.npy"), ("prepare", "fifo.npy"), ("prepare", "images"),
        ("inspect", "./images"), ("sample", "m.safetensors"), ("inspect", "m.safetensors"),
        ("sample", "--record", "c.json"),
        ("evaluate", "bundled", "--reference", "m.safetensors"), ("inspect", "zero.npy"),
        ("train", "--config", "c.json"),
    ):  # fmt: skip
        said = refused(*args)
        assert "pipe" in said or "device" in said or "no " in said, said


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda m: m["network"]["settings"].update(depth=10**9), "depth"),
        (lambda m: m["network"]["settings"].update(width=30_000), "width"),
        (lambda m: m["network"]["settings"].update(dropout=1e308), "dropout"),
        (lambda m: m["network"]["settings"].update(width=10**12), "width"),
        (lambda m: m["network"]["settings"].update(classes=10**12), "classes"),
        (lambda m: m["network"]["settings"].update(shape=[100_000, 100_000]), "shape"),
        (lambda m: m.update(shape=[10**12]), "shape"),
        (lambda m: m.update(sde={"name": "ddpm", "settings": {"steps": 10**9}}), "steps"),
    ],
)
def test_a_description_cannot_ask_for_more_than_the_weights_have(home: Path, change: Any, named: str) -> None:
    import resource

    path = Path("run/checkpoints/step-000004/state.json")
    content = json.loads(path.read_text())
    change(content["model"])
    path.write_text(json.dumps(content))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for args in (("inspect", "run"), ("sample", "run", "--n", 2), ("evaluate", "run")):
        refused(*args)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


@pytest.mark.parametrize(
    "args",
    [
        ("sample", "bundled", "--n", 9223372036854775807),
        ("sample", "bundled", "--n", 10**12),
        ("evaluate", "bundled", "--draws", 99999999999999999999),
        ("evaluate", "bundled", "--n", 99999999999999999999),
        ("evaluate", "bundled", "--nfe", 99999999999999999999),
        ("sample", "bundled", "--nfe", 99999999999999999999),
        ("sample", "bundled", "--steps", 10**12),
        ("train", "--width", 10**12, "--data", "moons"),
        ("train", "--depth", 10**9, "--network", "mlp"),
        ("train", "--channels", 10**6),
        ("compare", "bundled", "--n", 10**12),
        ("compare", "bundled", "--paired", 10**12),
        ("tune", "bundled", "--noise-samples", 10**12),
        ("likelihood", "bundled", "--elbo", 10**12),
        ("likelihood", "bundled", "--trace", "hutchinson", "--probes", 10**12),
    ],
    ids=lambda a: "-".join(map(str, a)),
)
def test_sizes_have_limits(args: tuple[object, ...]) -> None:
    assert "at most" in refused(*args) or "at most" in refused(*args)
    assert not list(Path().iterdir())


def test_a_large_size_of_images_is_refused() -> None:
    from PIL import Image

    Path("images").mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save("images/a.png")
    assert "at most" in refused("prepare", "images", "--size", 100_000)
