"""Conditions in arrays, torch data sets, files and folders belong to the samples that they should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from sde_diffusion.data import as_data, load_condition, load_data
from sde_diffusion.data.conditions import as_conditions
from solvers.errors import InputError, InputTypeError


def save(folder: Path, names: list[str], size: int = 4) -> None:
    """Gray images; the one called 7 has the value 7."""
    for name in names:
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((size, size), int(Path(name).name), np.uint8)).save(path)


def test_folders_of_images_are_paired_by_name_whatever_their_order(tmp_path: Path) -> None:
    save(tmp_path / "high", ["2", "10", "b/3"], 8)
    save(tmp_path / "low", ["10", "2", "b/3"])
    data = load_data(str(tmp_path / "high"), condition=str(tmp_path / "low"))
    assert data.condition is not None and data.condition.shape == (1, 4, 4)
    assert data.condition.values[:, 0, 0, 0].tolist() == data.x[:, 0, 0, 0].tolist()
    assert data.condition.batch([0]).max() <= -0.9  # bytes / 127.5 - 1
    (tmp_path / "low" / "10.png").rename(tmp_path / "low" / "11.png")
    with pytest.raises(InputError, match=r"do not form pairs of equal names: no image '10' in .*; 1 of 3"):
        load_data(str(tmp_path / "high"), condition=str(tmp_path / "low"))


def test_columns_arrays_and_single_images_are_read(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("day,temperature,wind\n1,20.5,3\n2,21,4e1\n")
    assert load_condition(str(table), (2,)).values.tolist() == [[1, 20.5, 3], [2, 21, 40]]
    assert load_condition(f"{table}:wind,day", (2,)).values.tolist() == [[3, 1], [40, 2]]
    np.savez(tmp_path / "all.npz", x=np.zeros((2, 2)), condition=np.ones((2, 3)), other=np.arange(2.0))
    assert load_condition(str(tmp_path / "all.npz"), (2,)).values.tolist() == [[1, 1, 1]] * 2
    assert load_condition(f"{tmp_path / 'all.npz'}:other", (2,)).values.tolist() == [[0], [1]]
    save(tmp_path, ["5"])
    assert load_condition(str(tmp_path / "5.png"), (1, 8, 8)).values.shape == (1, 1, 4, 4)


@pytest.mark.parametrize(
    ("content", "part", "message"),
    [
        ("a,b\n1,2\n3\n", "", "line 3 of .* has 1 cells; expected 2"),
        ("a,b\n1,x\n", "", "line 2 of .*: 'x' is no number"),
        ("a,b\n1,2\n", ":c", "unknown column of .* 'c'"),
        ("1,2\n3,4\n", ":a", "has no names of columns"),
        ("", "", "has no lines"),
        ("a\n1\nnan\n", "", "the condition of sample 1 is not finite"),
    ],
)
def test_tables_that_say_something_else_are_refused(tmp_path: Path, content: str, part: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        load_condition(f"{tmp_path / 't.csv'}{part}", (2,))


def test_the_number_of_conditions_is_that_of_the_samples(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(5, 2)))
    np.save(tmp_path / "c.npy", np.zeros((4, 2)))
    with pytest.raises(InputError, match="4 conditions for the 5 samples"):
        load_data(str(tmp_path / "x.npy"), condition=str(tmp_path / "c.npy"))
    with pytest.raises(InputError, match="4 conditions for 5 samples"):
        as_data(np.zeros((5, 2)), condition=np.zeros((4, 3)))


class Items(Dataset[Any]):
    """Five items made by a function of their number."""

    def __init__(self, make: Any) -> None:
        self.make = make

    def __len__(self) -> int:
        return 5

    def __getitem__(self, k: int) -> Any:
        return self.make(k)


@pytest.mark.parametrize(
    ("make", "kind", "labelled"),
    [
        (lambda k: (torch.zeros(2), torch.full((3,), float(k))), "vector", False),
        (lambda k: (torch.zeros(2), torch.tensor(float(k))), "vector", False),
        (lambda k: (torch.zeros(2), k, np.full((3,), float(k))), "vector", True),
        (lambda k: (torch.zeros(1, 8, 8), Image.new("L", (4, 4), k)), "image", False),
        (lambda k: {"x": torch.zeros(1, 8, 8), "label": k, "condition": torch.full((7, 3), float(k))}, "tokens", True),
        (lambda k: (torch.zeros(2), torch.tensor([k])), None, True),
    ],
)
def test_items_of_torch_data_sets_have_conditions(make: Any, kind: str | None, labelled: bool) -> None:
    data = as_data(Items(make))
    assert (data.labels is not None) == labelled
    assert (data.condition and data.condition.kind) == kind
    if data.condition is not None:
        assert data.condition.values.flatten(1)[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_items_that_differ_are_refused() -> None:
    with pytest.raises(InputError, match="item 2 of the conditions of Items has shape"):
        as_data(Items(lambda k: (torch.zeros(2), torch.zeros(3 if k < 2 else 4))))
    with pytest.raises(InputError, match="1 of 5 items of Items have a condition"):
        as_data(Items(lambda k: {"x": torch.zeros(2), **({"condition": torch.zeros(2)} if k == 0 else {})}))
    with pytest.raises(InputTypeError, match="real numbers"):
        as_conditions(np.array(["a", "b"]), (2,))


def test_moments_are_those_of_entries_and_channels() -> None:
    c = torch.randn(50, 3, 4, 4) * torch.tensor([1.0, 10.0, 0.0])[:, None, None] + 5
    mean, std = as_conditions(c, (1, 4, 4)).moments()
    assert mean.shape == (3, 1, 1)
    torch.testing.assert_close(mean.flatten(), c.mean((0, 2, 3)))
    torch.testing.assert_close(std.flatten()[:2], c.std((0, 2, 3), correction=0)[:2])
    assert std.flatten()[2] == 1  # never changes


def test_the_fingerprint_is_that_of_values_and_not_of_the_name() -> None:
    one, two = as_conditions(np.zeros((2, 3)), (2,), "a"), as_conditions(np.zeros((2, 3)), (2,), "b")
    assert one.fingerprint == two.fingerprint != as_conditions(np.ones((2, 3)), (2,)).fingerprint
