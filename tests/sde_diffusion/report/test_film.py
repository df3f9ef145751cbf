"""Films show every kind of data, in the format that the file name says, whole or not at all."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from sde_diffusion import VPSDE, Gaussian, sample
from sde_diffusion.report.film import BLUE, Reverse, check_film, film_frames, save_film, write_reverse
from sde_diffusion.sampling.settings import SamplingSettings
from sde_diffusion.sampling.shown.reverse_states import reverse_run

MODEL = Gaussian(torch.tensor([1.0, 0.0]), torch.tensor([[0.5, 0.2], [0.2, 0.1]]), sde=VPSDE())


def shown(*shape: int, times: int = 3) -> Reverse:
    x = torch.rand(times, 4, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Reverse(x, x.flip(0), torch.linspace(1, 0, times).tolist())


def test_the_states_are_those_of_the_samples_and_each_has_its_prediction() -> None:
    run, found = reverse_run(MODEL, SamplingSettings("sde", 6, seed=5), 4)
    assert torch.equal(found.states[-1], sample(MODEL, 4, solver="sde", nfe=6, seed=5))
    assert found.times == run.times.tolist() and torch.equal(found.denoised[-1], found.states[-1])
    at = torch.full((4,), found.times[2], dtype=torch.float64)
    assert torch.allclose(found.denoised[2], MODEL.denoise(found.states[2], at), atol=1e-5)
    with pytest.raises(ValueError, match="rk45 chooses its own steps"):
        reverse_run(MODEL, SamplingSettings("rk45"), 4)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (2,), (5,), (2, 30)])
def test_every_frame_has_two_panels(shape: tuple[int, ...]) -> None:
    frames = film_frames(*shown(*shape))
    assert len(frames) == 3 and len({frame.size for frame in frames}) == 1
    width = frames[0].size[0] // 2
    left, right = (frames[0].crop((x, 20, x + width, frames[0].size[1])).tobytes() for x in (0, width))
    other = frames[2].crop((0, 20, width, frames[0].size[1])).tobytes()
    assert left != right and left != other


def test_a_signal_is_a_line_through_its_values() -> None:
    flat = torch.zeros(1, 1, 1, 30)
    (frame,) = film_frames(flat, flat, [0.0])
    inked = [y for y in range(frame.size[1]) if frame.getpixel((100, y)) == BLUE]
    assert inked == [20 + 24] or inked == [20 + 23]  # one pixel, in the middle of 48


def test_numbers_and_volumes_have_no_film() -> None:
    for shape in ((1,), (1, 2, 2, 2)):
        with pytest.raises(ValueError, match=r"images .*, signals .* or vectors"):
            film_frames(*shown(*shape))


@pytest.mark.parametrize(
    ("suffix", "start"), [(".gif", b"GIF89a"), (".webp", b"RIFF"), (".png", b"\x89PNG"), (".pdf", b"%PDF")]
)
def test_the_name_of_the_file_says_the_format(tmp_path: Path, suffix: str, start: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    write_reverse(path, shown(1, 8, 8))
    assert path.read_bytes().startswith(start) and list(tmp_path.iterdir()) == [path]
    if suffix in (".gif", ".webp"):
        with Image.open(path) as film:
            assert film.n_frames == 3
    with pytest.raises(ValueError, match=r"\.gif, \.webp, \.mp4 and a film strip as \.png, \.svg, \.pdf"):
        check_film(Path("a.avi"))


def test_mp4_is_written_by_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="ffmpeg, which is not installed"):
        check_film(Path("a.mp4"))
    fake = tmp_path / "ffmpeg"
    fake.write_text(
        f"#!{sys.executable}\nimport sys\nsize = sys.argv[sys.argv.index('-s') + 1]\n"
        "open(sys.argv[-1], 'w').write(f'{size} {len(sys.stdin.buffer.read())}')\n"
    )
    fake.chmod(0o755)
    frames = [Image.new("RGB", (31, 20)) for _ in range(3)]
    save_film(frames, tmp_path / "a.mp4")
    size, count = (tmp_path / "a.mp4").read_text().split()
    assert size == "32x20" and int(count) == (3 + 15) * 32 * 20 * 3  # even sides; the last frame stays
    fake.write_text(f"#!{sys.executable}\nimport sys\nsys.stdin.buffer.read()\nsys.exit('no such codec')\n")
    with pytest.raises(OSError, match=r"ffmpeg could not write .*: no such codec"):
        write_reverse(tmp_path / "b.mp4", shown(1, 8, 8))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "ffmpeg"]
