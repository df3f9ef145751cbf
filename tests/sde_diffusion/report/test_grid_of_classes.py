"""Images of a class stand together, with the name of the class beside them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sde_diffusion.report.grid_of_classes import MOST_COLUMNS, labelled_grid


def test_classes_stand_together_below_each_other() -> None:
    values = torch.tensor([-1.0, 1.0]).repeat(4)[:, None, None, None].expand(-1, 1, 8, 8)  # black, white in turn
    grid = np.asarray(labelled_grid(values, [0, 1] * 4, ["black", "white"]).convert("L"))
    right = grid[:, -4 * 66 :]
    top, bottom = right[: len(right) // 2 - 2], right[len(right) // 2 + 2 :]
    assert set(np.unique(top)) == {0, 128} and set(np.unique(bottom)) == {128, 255}
    left = grid[:, : grid.shape[1] - 4 * 66 - 4]
    assert (left[: len(left) // 2] < 60).any() and (left[len(left) // 2 :] < 60).any()  # a heading for each


def test_a_class_of_many_images_takes_several_rows() -> None:
    few, many = (labelled_grid(torch.zeros(n, 3, 32, 32), [7] * n) for n in (MOST_COLUMNS, MOST_COLUMNS + 1))
    assert many.width == few.width and many.height > 1.9 * few.height - 4


def test_every_image_has_a_label() -> None:
    with pytest.raises(ValueError, match="2 labels for 3 images"):
        labelled_grid(torch.zeros(3, 1, 8, 8), [0, 1])
