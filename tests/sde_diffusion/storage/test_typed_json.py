"""Files are checked against the type of what they say, to the last entry, before anything is done with them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sde_diffusion.sampling import generate
from sde_diffusion.sampling.settings import SamplingSettings
from sde_diffusion.storage.atomic_folder import CheckpointError, read_json, to_json
from sde_diffusion.storage.evaluation_record import EVALUATION_KIND, read_evaluation, write_evaluation
from sde_diffusion.storage.locate import BUNDLED, find_model
from sde_diffusion.storage.record_types import EvaluationRecord, RunConfig, SampleRecord
from sde_diffusion.storage.sample_record import read_record
from sde_diffusion.storage.typed_json import checked

EVALUATION: EvaluationRecord = {
    "format": 1,
    "kind": EVALUATION_KIND,
    "source": {"path": "runs/a"},
    "reference": {"name": "digits"},
    "features": {"name": "pixels"},
    "runs": [{"n": 3}],
    "versions": {"torch": "2"},
}


@pytest.fixture(scope="module")
def record() -> SampleRecord:
    return generate.draw(find_model(BUNDLED), 2, SamplingSettings(nfe=2)).record


def paths(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each entry of JSON content that the type names; settings may be anything."""
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in entries:
        yield (*path, key)
        if key != "settings":
            yield from paths(value, (*path, key))


def at(content: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        content = content[key]
    return content


def test_a_record_passes_and_a_copy_with_one_wrong_entry_does_not(record: SampleRecord) -> None:
    plain = json.loads(to_json(record))
    assert checked(plain, SampleRecord, "a.json") == plain
    free = {("data", key) for key in plain["data"] if key not in ("name", "fingerprint", "samples")}
    tried = 0
    for path in paths(plain):
        if path in free:
            continue
        wrong = copy.deepcopy(plain)
        at(wrong, path[:-1])[path[-1]] = {"no": ["such", "thing"]} if not isinstance(at(plain, path), dict) else 3.5
        with pytest.raises(CheckpointError, match=r"a\.json: .* must be .*; got "):
            checked(wrong, SampleRecord, "a.json")
        tried += 1
    assert tried > 40


@pytest.mark.parametrize("name", ["n", "solver", "grid", "x", "machine", "model"])
def test_a_missing_entry_is_named(name: str, record: SampleRecord, tmp_path: Path) -> None:
    plain = {key: value for key, value in json.loads(to_json(record)).items() if key != name}
    (tmp_path / "samples.json").write_bytes(to_json(plain))
    with pytest.raises(CheckpointError, match=f"samples.json .* no entry '{name}'"):
        read_record(tmp_path / "samples.json")


@pytest.mark.parametrize(
    ("train", "word"),
    [([], "an object"), (None, "an object"), ("", "an object")],
)
def test_a_run_config_of_another_kind_is_refused(train: Any, word: str, record: SampleRecord) -> None:
    config = {"format": 1, "train": train, "model": record["model"], "data": {}}
    with pytest.raises(CheckpointError, match=f"config.json: train must be {word}"):
        checked(config, RunConfig, "config.json")


def test_true_is_no_number_and_a_number_is_finite(record: SampleRecord) -> None:
    plain = json.loads(to_json(record))
    for entry, value in (("n", True), ("eta", True), ("eta", float("nan")), ("eta", float("inf")), ("n", 2.0)):
        with pytest.raises(CheckpointError, match=f"{entry} must be"):
            checked({**plain, entry: value}, SampleRecord, "a.json")


def test_an_evaluation_is_read_back(tmp_path: Path) -> None:
    path = write_evaluation(tmp_path / "new" / "set", EVALUATION)
    assert read_evaluation(path) == read_evaluation(path.parent) == EVALUATION
    path.write_bytes(to_json({**EVALUATION, "kind": "sdediff samples"}))
    with pytest.raises(CheckpointError, match="no evaluation"):
        read_evaluation(path)
    path.write_bytes(to_json({**EVALUATION, "runs": {}}))
    with pytest.raises(CheckpointError, match="runs must be a list"):
        read_evaluation(path)
    with pytest.raises(FileNotFoundError, match="no evaluation at"):
        read_evaluation(tmp_path / "gone")


def test_bundled_descriptions_pass() -> None:
    for path in BUNDLED.parent.glob("*.safetensors"):
        if "classifier" not in path.name:
            assert find_model(path).model["shape"] == read_json(path.with_suffix(".json"))["model"]["shape"]
