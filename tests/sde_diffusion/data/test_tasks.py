"""Conditions made of the samples: means of pixels, grey images, hidden rectangles; what does not fit is refused."""

from __future__ import annotations

import pytest
import torch

from sde_diffusion.data import Data, as_data, load_condition, load_data
from sde_diffusion.data.tasks.degraded import hidden, place_of, task_conditions
from sde_diffusion.guidance.observations import Downsample, Grey
from sde_diffusion.training.defaults import set_up
from solvers.errors import InputError


def colours(n: int = 6, size: int = 8) -> Data:
    return as_data(torch.randint(256, (n, 3, size, size), dtype=torch.uint8), name="colours")


@pytest.mark.parametrize("factor", [2, 4])
def test_superres_and_colorize_are_the_operators_of_restoration(factor: int) -> None:
    data = colours()
    x = data.batch(slice(None))
    low = load_condition(place_of("superres", factor), data.shape, data)
    assert torch.allclose(low.batch(slice(None)), Downsample(factor)(x), atol=1e-6)
    grey = load_condition("task:colorize", data.shape, data).batch(slice(None))
    assert torch.allclose(grey, Grey()(x), atol=1e-6)


def test_inpaint_shows_the_image_outside_of_one_rectangle() -> None:
    data = colours(40, 16)
    found = task_conditions("task:inpaint", data).batch(slice(None))
    image, mask = found[:, :3], found[:, 3:]
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(image, data.batch(slice(None)) * mask)
    for one in mask[:, 0] == 0:
        rows, columns = one.any(1), one.any(0)
        assert torch.equal(one, rows[:, None] & columns[None])  # a rectangle
        assert 4 <= int(rows.sum()) <= 8 and 4 <= int(columns.sum()) <= 8
    assert len({tuple(m.flatten().tolist()) for m in mask}) > 30
    assert torch.equal(found[7:8], hidden(data.batch([7]), torch.tensor([7])))  # by position, not by batch


def test_of_other_samples() -> None:
    found = load_condition("task:superres:2@digits", (1, 8, 8))
    assert found.shape == (1, 4, 4) and len(found) == len(load_data("digits", split="test"))


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("task:superres:3", "the factor 3 of superres does not divide 8 x 8"),
        ("task:superres", "superres has a factor from 2 up"),
        ("task:superres:x", "superres has a factor from 2 up"),
        ("task:colorize:2", "colorize has no settings"),
        ("task:denoise", "unknown task 'denoise'"),
    ],
)
def test_other_tasks_are_refused(place: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        task_conditions(place, colours())


def test_data_of_another_kind_are_refused() -> None:
    with pytest.raises(InputError, match="colorize is of RGB images, 3 channels; digits has 1"):
        task_conditions("task:colorize", load_data("digits"))
    with pytest.raises(InputError, match="is of images"):
        task_conditions("task:inpaint", load_data("moons"))
    with pytest.raises(InputError, match="say of which: task:inpaint@digits"):
        load_condition("task:inpaint", (1, 8, 8))


def test_the_command_builds_the_network_of_a_task() -> None:
    made = set_up({"task": "superres", "factor": 4, "condition_noise": 0.5})
    assert made.model.network.settings["image"] == [1, 2, 2]
    assert made.model.network.settings["resize"] == "bilinear"
    assert made.data.condition is not None and made.data.condition.name == "task:superres:4"
    with pytest.raises(InputError, match="give one of them"):
        set_up({"task": "superres", "condition": "low"})
    with pytest.raises(InputError, match="--factor\\) is of the task superres"):
        set_up({"task": "inpaint", "factor": 4})
    with pytest.raises(InputError, match="--factor\\) is of a task"):
        set_up({"factor": 4})
