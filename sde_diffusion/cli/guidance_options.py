"""Options of conditions and guidance, which several commands share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_type_hints

import typer

from sde_diffusion.cli.options import option, whole_numbers

if TYPE_CHECKING:
    from sde_diffusion.sampling.given.conditions import GivenCondition
    from sde_diffusion.sampling.guidance_settings import GuidanceSettings
    from sde_diffusion.storage.checkpoint import StoredModel
    from sde_diffusion.storage.record_types import ConditionEntry

LabelOption = Annotated[
    str | None,
    option(
        "--label",
        "Class, by name or number, of a model trained with --labels; several (3,5) or all are taken in turn.",
        "no class",
        "Guidance",
    ),
]
GuidanceOption = Annotated[
    float | None,
    option(
        "--guidance",
        "Scale of classifier-free guidance to --label; 1 is the conditional model alone. Doubles the NFE.",
        "1",
        "Guidance",
    ),
]
IntervalOption = Annotated[
    str | None,
    option("--guidance-interval", "LOW,HIGH: guide only where LOW < sigma/alpha <= HIGH.", "everywhere", "Guidance"),
]
RescaleOption = Annotated[
    float | None,
    option(
        "--rescale",
        "phi, 0 to 1: bring guided outputs back to the standard deviation of the conditional ones.",
        "0",
        "Guidance",
    ),
]
ApgOption = Annotated[bool, typer.Option("--apg", help="Adaptive projected guidance.", rich_help_panel="Guidance")]
EtaParallelOption = Annotated[
    float | None,
    option("--eta-parallel", "Weight of the parallel part of the update with --apg.", "0", "Guidance"),
]
PlusPlusOption = Annotated[
    bool,
    typer.Option(
        "--cfg++",
        help="CFG++: renoise with the unconditional prediction; --guidance is its lambda, 0 to 1. For ddim and ddpm.",
        rich_help_panel="Guidance",
    ),
]
AutoguideOption = Annotated[
    Path | None,
    option(
        "--autoguide",
        "RUN of a weaker model on the same data and process: guide away from it, not from the model without a label.",
        panel="Guidance",
    ),
]
ClassifierOption = Annotated[
    Path | None,
    option(
        "--classifier",
        "RUN of 'sdediff train --classifier': classifier guidance to --label, for models with and without labels.",
        panel="Guidance",
    ),
]
ScaleOption = Annotated[
    float | None,
    option("--scale", "Scale of the gradient of --classifier; 1 is the score of the class.", "1", "Guidance"),
]
ConditionOption = Annotated[
    str | None,
    option(
        "--condition",
        "Conditions of a model trained with --condition, taken in turn: an image, a folder of images, .npy, "
        ".npz:ARRAY, .csv:COLUMN,COLUMN, or a .txt of captions.",
        "no condition",
        "Guidance",
    ),
]
ConditionNoiseOption = Annotated[
    float | None,
    option(
        "--condition-noise", "Noise level of condition images, from 0 to 1, that the network receives.", "0", "Guidance"
    ),
]


CaptionOption = Annotated[
    list[str] | None,
    option(
        "--caption",
        "Caption, such as 'a three left of a seven', of a model trained with captions; several are taken in turn.",
        "no caption",
        "Guidance",
    ),
]


class GuidanceArguments(NamedTuple):
    """The options of guidance as they were typed; ``with_guidance`` gives a command all of them at once."""

    label: LabelOption = None
    guidance: GuidanceOption = None
    guidance_interval: IntervalOption = None
    rescale: RescaleOption = None
    apg: ApgOption = False
    eta_parallel: EtaParallelOption = None
    autoguide: AutoguideOption = None
    plus_plus: PlusPlusOption = False
    classifier: ClassifierOption = None
    scale: ScaleOption = None
    condition: ConditionOption = None
    condition_noise: ConditionNoiseOption = None
    caption: CaptionOption = None

    @property
    def labelled(self) -> bool:
        """Whether the bundled model is to be the one with labels."""
        return self.classifier is None and not (self.label is None and self.guidance is None)

    def given(self) -> list[str]:
        """The names of those that were typed."""
        return [name for name, v in self._asdict().items() if v is not None and v is not False and v != []]

    def words(self) -> list[str]:
        """The words of a command line that give them again.

        >>> GuidanceArguments(label="3", guidance=2.0, apg=True).words()
        ['--label 3', '--guidance 2.0', '--apg']
        """
        found = []
        for name in self.given():
            value, option = getattr(self, name), f"--{'cfg++' if name == 'plus_plus' else name.replace('_', '-')}"
            values = [f"'{text}'" for text in value] if isinstance(value, list) else [value]
            found += [option if value is True else f"{option} {value}" for value in values]
        return found

    def labels(self, stored: StoredModel) -> list[int] | None:
        """The classes that --label names, by name or number; all of them are those of the model's network.

        Raises:
            ValueError: a class that the data do not have.
        """
        from sde_diffusion.data.labels import class_index
        from solvers.errors import InputError

        if self.label is None:
            return None
        if self.classifier is not None and not (stored.model["network"]["settings"] or {}).get("classes"):
            from sde_diffusion.storage.locate import find_classifier

            stored = find_classifier(self.classifier)  # the labels are its own
        classes = (stored.model["network"]["settings"] or {}).get("classes")
        if classes is None and stored.given is not None:
            network = stored.given().network
            classes = (getattr(network, "settings", None) or {}).get("classes")
        if self.label == "all":
            if classes is None:
                raise InputError(
                    "--label all needs a model with a known number of classes, such as a run trained with --labels; "
                    "this model states none"
                )
            return list(range(classes))
        if classes is None:  # refused where the model is made, unless its network takes any label
            return whole_numbers(self.label, "--label")
        return [class_index(name.strip(), stored.data.get("class_names"), classes) for name in self.label.split(",")]

    def settings(self, stored: StoredModel) -> GuidanceSettings:
        """The settings of guidance, with the weaker model, the classifier and the conditions found on disk.

        Args:
            stored: the model that they are for.

        Raises:
            ValueError: values out of range or in conflict.
        """
        from sde_diffusion.sampling.guidance_settings import GuidanceSettings
        from sde_diffusion.storage.locate import find_classifier, find_model
        from solvers.errors import InputError

        if self.eta_parallel is not None and not self.apg:
            raise InputError("--eta-parallel is an option of projected guidance; add --apg")
        return GuidanceSettings(
            scale=1.0 if self.guidance is None else self.guidance,
            interval=self._interval(),
            rescale=self.rescale,
            eta_parallel=(self.eta_parallel or 0.0) if self.apg else None,
            guide=None if self.autoguide is None else find_model(self.autoguide),
            plus_plus=self.plus_plus,
            classifier=None if self.classifier is None else find_classifier(self.classifier),
            classifier_scale=1.0 if self.scale is None else self.scale,
            condition=self._condition(stored),
        )

    def again(self, entry: ConditionEntry | None, stored: StoredModel) -> GivenCondition | None:
        """The conditions of a record: its captions, or those of --condition, since a record opens no file."""
        from sde_diffusion.sampling.given.conditions import given_captions, read_given

        if self.condition is not None:
            return read_given(self.condition, stored, 0.0 if entry is None else entry.get("noise", 0.0))
        captions = None if entry is None else entry.get("captions")
        return given_captions(captions, stored) if captions else None

    def _condition(self, stored: StoredModel) -> GivenCondition | None:
        from sde_diffusion.sampling.given.conditions import given_captions, read_given
        from solvers.errors import InputError

        if self.caption:
            if self.condition is not None or self.condition_noise is not None:
                raise InputError("--caption is a condition of its own; leave out --condition and --condition-noise")
            return given_captions(self.caption, stored)
        if self.condition is None:
            if self.condition_noise is not None:
                raise InputError("--condition-noise would have no effect without --condition")
            return None
        return read_given(self.condition, stored, self.condition_noise or 0.0)

    def _interval(self) -> tuple[float, float] | None:
        from solvers.errors import InputError

        if self.guidance_interval is None:
            return None
        try:
            low, high = (float(end) for end in self.guidance_interval.split(","))
        except ValueError:
            raise InputError(
                "--guidance-interval takes 2 numbers separated by a comma, such as 0.2,5; got "
                f"'{self.guidance_interval}'"
            ) from None
        return low, high


def with_guidance(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of guidance; it gets them as ``asked``, one ``GuidanceArguments``.

    >>> @with_guidance
    ... def command(n: int = 1, *, asked: GuidanceArguments):
    ...     print(n, asked.given())
    >>> command(n=2, label="3", guidance=None, apg=True)
    2 ['label', 'apg']
    """

    @functools.wraps(command)
    def wrapper(**values: Any) -> Any:
        typed = {name: values.pop(name) for name in GuidanceArguments._fields if name in values}
        return command(**values, asked=GuidanceArguments(**typed))

    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "asked"]
    hints = get_type_hints(GuidanceArguments, include_extras=True)
    added = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=GuidanceArguments._field_defaults[name],
            annotation=hints[name],
        )
        for name in GuidanceArguments._fields
    ]
    parameters = [*own, *added]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper
