"""The options of a training are declared once: command line, TOML and docs follow."""

from __future__ import annotations

import functools
import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer.main
from torch import nn

import sde_diffusion
from sde_diffusion.cli import app
from sde_diffusion.data import load_data
from sde_diffusion.networks import DESCRIBED, NETWORKS
from sde_diffusion.sde import SDES
from sde_diffusion.training.config import TrainConfig
from sde_diffusion.training.config_file import read_options, write_options
from sde_diffusion.training.defaults import default_model
from sde_diffusion.training.options import NETWORK, PROCESS, TRAINING, table_of_options

PAGE = Path(sde_diffusion.__file__).parent.parent / "docs" / "training.md"


def test_every_field_has_its_meaning_and_its_option() -> None:
    command: Any = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]
    helps = {flag: parameter.help for parameter in command.params for flag in parameter.opts}
    assert [option.name for option in TRAINING] == [field.name for field in fields(TrainConfig)]
    for option in TRAINING:
        assert option.text.endswith(".") and option.text[0].isalnum()
        assert helps[option.flags[0].split("/")[0]] == option.text
        assert f"\n        {option.name}: " in str(inspect.getdoc(TrainConfig)).replace("\n    ", "\n        ")


def test_every_default_is_read_from_a_file_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "all.toml").write_bytes(write_options(TrainConfig().to_dict()))
    assert TrainConfig.from_dict(read_options(tmp_path / "all.toml")) == TrainConfig()


def test_the_page_has_the_table() -> None:
    found = re.search(r"<!-- options -->\n(.*?)\n<!-- end of options -->", PAGE.read_text(), re.S)
    assert found is not None
    assert found[1].strip() == table_of_options(), "put what table_of_options() returns between the two comments"


@pytest.mark.parametrize("option", PROCESS, ids=lambda o: o.name)
def test_settings_of_processes_are_those_of_some_process(option: Any) -> None:
    assert any(option.name in inspect.signature(kind).parameters for kind in SDES.values())


@pytest.mark.parametrize("option", [o for o in NETWORK if o.name not in ("name", "size")], ids=lambda o: o.name)
def test_settings_of_networks_are_those_of_some_network(option: Any) -> None:
    assert any(option.name in inspect.signature(kind).parameters for kind in DESCRIBED.values())


@pytest.mark.parametrize("network", ["unet", "mlp", None])
def test_the_default_model_builds_its_network_once(network: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    for kind in NETWORKS.values():
        start = kind.__init__

        @functools.wraps(start)
        def counted(self: nn.Module, *args: Any, _start: Any = start, **settings: Any) -> None:
            built.append(type(self).__name__)
            _start(self, *args, **settings)

        monkeypatch.setattr(kind, "__init__", counted)
    default_model(load_data("digits"), network=network)
    assert built == ["MLP" if network == "mlp" else "UNet"]
