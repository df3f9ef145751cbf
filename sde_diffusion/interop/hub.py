r"""Models on the Hugging Face hub, by the mixin of huggingface_hub.

    HubModel(model).push_to_hub("you/digits")
    model = HubModel.from_pretrained("you/digits").model

What is stored is one safetensors file that describes itself, as ``sde_diffusion.storage.checkpoint.export`` writes it:
no pickle and no code. ``save_pretrained`` and ``from_pretrained`` take a local folder as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin, hf_hub_download

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.storage.checkpoint import export, load
from solvers.errors import InputError, NotFoundError

FILE = "model.safetensors"


class HubModel(  # type: ignore[call-arg]
    ModelHubMixin,  # type: ignore[misc]
    library_name="sdediff",
    tags=["diffusion", "score-based-generative-model"],
):
    """A score model that can be pushed to the hub and read from it.

    Args:
        model: on a network of this package; others need their own code to be read, which the hub does not hold.

    Raises:
        ValueError: a network or process that a file cannot name.
    """

    def __init__(self, model: ScoreModel) -> None:
        from sde_diffusion.storage.checkpoint import describe_model

        entry = describe_model(model)
        if entry["network"]["name"] is None:
            raise InputError(
                f"a network of your own, {entry['network']['class']}, cannot be read from a file alone; share its "
                f"code, or "
                "train one of sde_diffusion.networks"
            )
        self.model = model

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the file; called by ``save_pretrained`` and ``push_to_hub``."""
        export(self.model, Path(save_directory) / FILE)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None = None,
        cache_dir: Any = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: Any = None,
        **_: Any,
    ) -> HubModel:
        """Read a local folder, or the hub's copy."""
        if Path(model_id).is_dir():
            file = Path(model_id) / FILE
            if not file.is_file():
                raise NotFoundError(f"no {FILE} in {model_id}; save one: HubModel(model).save_pretrained({model_id!r})")
        else:
            file = Path(
                hf_hub_download(
                    model_id,
                    FILE,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            )
        return cls(load(file))
