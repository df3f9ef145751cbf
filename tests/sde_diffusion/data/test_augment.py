"""What is done to an image is what the numbers say, and the same for every way to cut a batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sde_diffusion.data.augment import Augmentation

PLAIN = Augmentation()


def image(height: int = 8, width: int = 8) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


def done(x: Tensor, **numbers: float) -> Tensor:
    names = ["flip", "mirror_x", "mirror_y", "scale", "cosine", "sine", "along", "across", "right", "down"]
    drawn = torch.tensor([[numbers.get(name, 0.0) for name in names]])
    found, labels = PLAIN.apply(x, drawn)
    expected = drawn[:, 1:] if drawn[:, 1:].any() else torch.full((1, 9), torch.nan)
    assert torch.equal(labels.nan_to_num(7.0), expected.nan_to_num(7.0))
    return found


def near(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=1e-5)


def test_mirrors_are_exact_and_nothing_is_nothing() -> None:
    x = image(4, 6)
    assert torch.equal(done(x), x)
    assert torch.equal(done(x, flip=1), x.flip(3)) and torch.equal(done(x, mirror_x=1), x.flip(3))
    assert torch.equal(done(x, mirror_y=1), x.flip(2)) and torch.equal(done(x, flip=1, mirror_x=1), x)


def test_shifts_are_eighths_of_the_image() -> None:
    x = image(8, 16)
    assert near(done(x, right=1)[..., 2:], x[..., :-2])  # 16 / 8 pixels to the right
    assert near(done(x, down=2)[..., 2:, :], x[..., :-2, :])
    assert near(done(x, right=1)[..., :2], x[..., :2].flip(3))  # reflected at the border


def test_turns_are_turns_also_of_oblong_images() -> None:
    x = image()
    assert near(done(x, cosine=-1, sine=1), torch.rot90(x, -1, (2, 3)))  # clockwise
    oblong = image(4, 10)
    assert near(done(oblong, cosine=-2), oblong.flip((2, 3)))
    # a quarter turn of pixels that are square: the middle 4 x 4 turns within itself
    quarter, middle = done(oblong, cosine=-1, sine=1)[..., 3:7], oblong[..., 3:7]
    assert near(quarter, torch.rot90(middle, -1, (2, 3)))


def ramp(direction: tuple[float, float], n: int = 33) -> Tensor:
    axis = torch.arange(n, dtype=torch.float32) - (n - 1) / 2
    return (direction[0] * axis[None, :] + direction[1] * axis[:, None])[None, None]


@pytest.mark.parametrize(
    ("numbers", "direction", "factor"),
    [
        ({"scale": 5.0}, (1, 0), 2.0),
        ({"scale": -2.5}, (0, 1), 2**-0.5),
        ({"along": 5.0}, (1, 0), 2.0),  # b = 0: grows along x, shrinks along y
        ({"along": 5.0}, (0, 1), 0.5),
        ({"along": -5.0}, (1, 0), 0.5),
        ({"across": 5.0}, (1, 1), 2.0),  # 2b = pi/2: grows along the diagonal
        ({"across": 5.0}, (1, -1), 0.5),
    ],
)
def test_growth_by_2_to_the_fifth_of_z(
    numbers: dict[str, float], direction: tuple[float, float], factor: float
) -> None:
    """A ramp that grows by f along itself is 1/f as steep."""
    x = ramp(direction)
    middle = slice(13, 20)  # the border is reflected
    assert near(done(x, **numbers)[..., middle, middle], (x / factor)[..., middle, middle])


def test_draws_have_their_probabilities_and_do_not_depend_on_the_cut() -> None:
    p, n = 0.3, 20_000
    drawn = Augmentation(flip=True, probability=p).draw(n, torch.Generator().manual_seed(1))
    share = (drawn != 0).double().mean(0)
    expected = torch.tensor([0.5, p / 2, p / 2, p, p, p, p, p, p, p], dtype=torch.float64)
    assert ((share - expected).abs() < 4 * (expected * (1 - expected) / n).sqrt()).all()
    assert near((drawn[:, 4] + 1) ** 2 + drawn[:, 5] ** 2, torch.ones(n))
    for column in (3, 8, 9):
        z = drawn[:, column][drawn[:, column] != 0]
        assert abs(float(z.mean())) < 4 / len(z) ** 0.5 and abs(float(z.std()) - 1) < 4 / (2 * len(z)) ** 0.5
    assert not Augmentation().draw(100, torch.Generator().manual_seed(1)).any()
    x = torch.rand(6, 1, 8, 8)
    some = Augmentation(flip=True, probability=0.7)
    rows = some.draw(6, torch.Generator().manual_seed(2))
    whole = some.apply(x, rows)[0]
    parts = torch.cat([some.apply(x[:2], rows[:2])[0], some.apply(x[2:], rows[2:])[0]])
    assert near(whole, parts) and not near(whole, x)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"in \[0, 1\]; got 1.5"):
        Augmentation(probability=1.5)
    for x, rows in ((torch.zeros(2, 4), 2), (torch.zeros(2, 1, 4, 4), 3)):
        with pytest.raises(ValueError, match="expected images"):
            PLAIN.apply(x, torch.zeros(rows, 10))
