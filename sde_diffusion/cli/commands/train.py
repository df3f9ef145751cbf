"""`sdediff train`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sde_diffusion.cli.cascades import train_stages
from sde_diffusion.cli.commands.tune import tune_model
from sde_diffusion.cli.errors import echo, say
from sde_diffusion.cli.options import listed_options, option, whole_numbers
from sde_diffusion.data import Conditions, load_data
from sde_diffusion.data.toy import LAWS
from sde_diffusion.files.writing import write_file
from sde_diffusion.models.autoencoder import LATENT, AutoencoderModel
from sde_diffusion.models.noisy_classifier import CLASS, NoisyClassifier
from sde_diffusion.parallel.launcher import launched, rank
from sde_diffusion.parallel.processes import Processes
from sde_diffusion.report import terminal
from sde_diffusion.report.page_of_training import EXPECTED, SAMPLED
from sde_diffusion.report.share_of_work import share_bar
from sde_diffusion.report.strips import save_strips
from sde_diffusion.sampling import generate
from sde_diffusion.sampling.devices import device_for
from sde_diffusion.sampling.given.conditions import GivenCondition
from sde_diffusion.sampling.guidance_settings import GuidanceSettings
from sde_diffusion.storage import sample_record
from sde_diffusion.storage.atomic_folder import to_json
from sde_diffusion.storage.checkpoint import checkpoint_at, load
from sde_diffusion.storage.locate import find_model, recorded_data, unused
from sde_diffusion.storage.run_folder import run_config
from sde_diffusion.text.vocabulary import to_caption
from sde_diffusion.training.autoencoding.reconstruction import quality
from sde_diffusion.training.conditional.accuracy import accuracy_by_time
from sde_diffusion.training.config import TrainConfig
from sde_diffusion.training.config_file import read_options
from sde_diffusion.training.defaults import Setup, merged, set_up
from sde_diffusion.training.options import NETWORK, PROCESS, RUN, TRAINING
from sde_diffusion.training.training_run import train as run_training
from sde_diffusion.training.watching.cost import measure_cost
from sde_diffusion.training.watching.watcher import PAGE, shown_kind
from solvers.errors import InputError

TUNING_MINUTES = 2  # for each NFE of --tune

EXAMPLES = """
\b
Examples:
sdediff train                              the bundled digits, VP
sdediff train --sde vp --steps 500         a quick look
sdediff train --data moons --sde flow      points in 2-D
sdediff train --data cats/ --size 32x32    a folder of images, resized
sdediff train --data mnist --data-dir data
sdediff train --labels                     for guidance
sdediff train --data high/ --condition low/   pairs of images
sdediff train --task superres --factor 4   a network that restores
sdediff train --classifier                 for classifier guidance
sdediff train --autoencoder kl             for latent diffusion
sdediff train --latent runs/digits-autoencoder
sdediff train --cascade stages.toml        small images, then larger ones
sdediff train --config cats.toml           every option from a file
sdediff train --resume                     resume the latest run
accelerate launch -m sde_diffusion train --out DIR  all GPUs
"""
ACCURACY, QUALITY, PICTURE = "accuracy.json", "autoencoder.json", "reconstructions.png"
DATA, MODEL = "Data and run", "Model"


def of_run(name: str, panel: str = DATA) -> Any:
    """The option of this name in ``options.RUN``."""
    found = next(option for option in RUN if option.name == name)
    return option(found.flags[0], found.text, found.usual, panel, found.values)


@listed_options({MODEL: PROCESS, "Training": TRAINING, "Network": NETWORK})
def train(
    data: Annotated[str | None, of_run("data")] = None,
    size: Annotated[str | None, of_run("size")] = None,
    data_dir: Annotated[Path | None, of_run("data_dir")] = None,
    layout: Annotated[str | None, of_run("layout")] = None,
    condition: Annotated[str | None, of_run("condition")] = None,
    task: Annotated[str | None, of_run("task")] = None,
    factor: Annotated[int | None, of_run("factor")] = None,
    resize_condition: Annotated[str | None, of_run("resize_condition")] = None,
    out: Annotated[Path | None, of_run("out")] = None,
    resume: Annotated[
        bool,
        option(
            "--resume", "Resume the run in --out, or the latest run, from its newest complete checkpoint.", True, DATA
        ),
    ] = False,
    config_file: Annotated[
        Path | None,
        option("--config", "A TOML file with any of these options; every run keeps one as config.toml.", False, DATA),
    ] = None,
    force: Annotated[bool, option("--force", "Allow changed options with --resume.", True, DATA)] = False,
    sde: Annotated[str | None, of_run("sde", MODEL)] = None,
    predicts: Annotated[str | None, of_run("predicts", MODEL)] = None,
    cascade: Annotated[
        Path | None,
        option(
            "--cascade",
            "A TOML file of the stages of a cascade, which are trained in turn.",
            False,
            MODEL,
        ),
    ] = None,
    autoencoder: Annotated[str | None, of_run("autoencoder", MODEL)] = None,
    latent: Annotated[str | None, of_run("latent", MODEL)] = None,
    features: Annotated[str | None, of_run("features", MODEL)] = None,
    tune: Annotated[
        str | None,
        option(
            "--tune", "After training, tune solvers for these NFE, such as 5,8,10,20; two minutes each.", False, DATA
        ),
    ] = None,
    classifier: Annotated[
        bool,
        option(
            "--classifier",
            "Train a classifier of noisy samples, p(class | x_t, t), on the labels of the data, for classifier "
            "guidance of another model.",
            True,
            MODEL,
        ),
    ] = False,
    *,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Train a score model by denoising score matching.

    Images get a U-Net and everything else an MLP, of a size that suits data and device. The time is
    estimated beforehand. The run is a folder with checkpoints, samples and index.html, a page of losses
    and samples to watch. Ctrl-C saves a checkpoint and samples, and stops; --resume continues, and
    resumed training is bit-identical.
    """
    budgets = [] if tune is None else whole_numbers(tune, "--tune")  # fails before the training starts
    if force and not resume:
        raise InputError("--force would have no effect: it lets --resume change options; an existing run is kept")
    named = {
        "data": data, "size": size, "data_dir": data_dir, "layout": layout, "condition": condition,
        "resize_condition": resize_condition, "out": out, "sde": sde, "predicts": predicts,
        "autoencoder": autoencoder, "latent": latent, "task": task, "factor": factor, "features": features,
    }  # fmt: skip
    if autoencoder is not None and (tune is not None or classifier):
        raise InputError("--autoencoder trains no score model; leave out --tune and --classifier")
    if classifier:
        if predicts is not None or tune is not None:
            raise InputError("--classifier predicts the class and cannot be tuned; leave out --predicts and --tune")
        named["predicts"] = CLASS
    typed = {**settings, **{name: value for name, value in named.items() if value is not None}}
    if cascade is not None:
        if tune is not None or force or classifier:
            raise InputError("--cascade trains several models; leave out --tune, --force and --classifier")
        return train_stages(cascade, out, merged(read_options(config_file) if config_file else {}, typed), resume)
    with share_bar(True, "preparing") as share:
        made = set_up(
            merged(read_options(config_file) if config_file else {}, typed),
            resume=resume,
            progress=None if share is None else lambda done, total: share(done / total),
        )
    model, config, folder = made.model, made.config, made.out
    for name, other, on in (
        ("drop_label", "--labels", config.labels),
        ("drop_condition", "--condition", made.data.condition),
        ("snapshot_every", "--ema-width", config.ema_widths),
        ("perceptual", "--features", isinstance(model, AutoencoderModel) and model.reader),
        ("adversarial_after", "--adversarial", config.adversarial),
    ):
        if name in settings and not on:
            raise InputError(f"--{name.replace('_', '-')} would have no effect without {other}")
    main = rank() == 0

    def tell(text: str, command: str = "") -> None:
        if main:
            echo(text, command)

    again = ""
    own = made.data.condition is not None and made.data.condition.name == made.data.name
    for option_, part in (("--data", made.data), ("--condition", None if own else made.data.condition)):
        try:
            recorded_data("digits" if part is None else part.name, option_)
        except InputError:  # a run cannot make the command read files outside the current folder
            again += f" {option_} {part.name if part else ''}"
    tell(made.data.describe())
    if made.data.condition is not None:
        tell(made.data.condition.describe())
    process = "" if model.predicts == LATENT else f"{model.sde}; "
    tell(f"{process}{model.network.name} predicts {model.predicts}")
    tell(f"run {folder}, {config.steps} steps; after an interruption:", f"sdediff train --resume --out {folder}{again}")
    if resume and config.schedule != "constant":
        step = checkpoint_at(folder).step or 0
        before = TrainConfig.from_dict(run_config(folder)["train"])
        if before.steps != config.steps:
            tell(
                f"learning rate {config.learning_rate_at(step + 1):.3g} at step {step + 1}: the {config.schedule} "
                f"schedule now ends at {config.steps} steps; at step {step} of {before.steps} the learning rate was "
                f"{before.learning_rate_at(max(step, 1)):.3g}"
            )
    cost = None
    if main and launched() == 1:
        cost = measure_cost(model, made.data, config, (checkpoint_at(folder).step or 0) if resume else 0)
        tell(str(cost))
        if advice := cost.advice(made.size):
            tell(advice)
    if config.sample_every:
        kind = shown_kind(model, made.data)
        shown = f"samples every {config.sample_every} updates, and the loss" if kind in SAMPLED else "the loss"
        tell(f"{shown}: open {folder / PAGE}")
        tell(f"what to expect: {EXPECTED[kind]}")
    start = time.perf_counter()
    try:
        run_training(
            model,
            made.data,
            config,
            out=folder,
            resume=resume,
            force=force,
            progress=terminal.shows_progress(),
            held_out=made.held_out,
        )
    except KeyboardInterrupt:
        if main:
            interrupted(folder, config.steps, again)
        raise
    tell(f"trained in {time.perf_counter() - start:.0f} s{Processes(world=launched())}")
    if not main:
        return {}
    if model.predicts == CLASS:
        show_accuracy(folder, made, config.device)
        tell("next:", f"sdediff sample MODEL --classifier {folder} --label 0 --scale 2")
        return {"written": [folder / ACCURACY, folder / PAGE], "run": folder, "steps": config.steps}
    if model.predicts == LATENT:
        written = show_reconstructions(folder, made, config.device)
        tell("next:", f"sdediff train --latent {folder}{again}")
        return {"written": [*written, folder / PAGE], "run": folder, "steps": config.steps}
    given = None if made.data.condition is None else GivenCondition(made.data.condition)
    beside = GuidanceSettings(condition=given)
    with share_bar(True, "sampling") as progress:
        drawn = generate.draw(find_model(folder), guidance=beside, device=config.device, progress=progress)
    picture = sample_record.save_samples(drawn, unused(folder / "samples" / f"pf-ode-step-{config.steps:06d}"))
    if budgets:
        minutes = TUNING_MINUTES * len(budgets)
        tune_model(find_model(folder), budgets, minutes=minutes, device=config.device, guidance=beside)
    coded = own and made.data.condition is not None and made.data.condition.words is None
    more = "" if made.data.condition is None or coded else f" {again_with(made.data.condition)}"
    tell("next:", f"sdediff sample {folder}{more} --nfe {budgets[0] if budgets else 20}")
    tell(f"{'picture' if picture.suffix == '.png' else 'arrays'} {picture}")
    return {
        "written": [picture, folder / PAGE],
        "run": folder,
        "steps": config.steps,
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "seconds_an_update": None if cost is None else cost.seconds,
    }


def again_with(condition: Conditions) -> str:
    """The option of `sdediff sample` that gives conditions such as these.

    >>> from sde_diffusion.data.captioned.caption_files import as_captions
    >>> again_with(as_captions(["a three", "a seven"]))
    '--caption "a three"'
    """
    if condition.words is not None:
        return f'--caption "{to_caption(condition.values[0], condition.words)}"'
    return f"--condition {condition.name}"


def interrupted(folder: Path, steps: int, again: str) -> None:
    """Say where a stopped run is, and how to go on."""
    try:
        step = checkpoint_at(folder).step or 0
    except (OSError, ValueError):  # stopped before there was anything to save
        return
    echo(f"stopped after update {step:,} of {steps:,}, which is saved")
    picture = folder / "samples" / f"step-{step:06d}.png"
    if picture.is_file():
        echo(f"picture {picture}")
    echo("go on:", f"sdediff train --resume --out {folder}{again}")


def show_accuracy(folder: Path, made: Setup, device: str) -> None:
    """Print the accuracy of a classifier by time, on the held-out data where there are any, and write it to the run."""
    model = load(folder, device=str(device_for(device)))
    assert isinstance(model, NoisyClassifier)
    held_out = made.data.name in ("digits", *LAWS)
    data = load_data(made.data.name, split="test") if held_out else made.data
    found = accuracy_by_time(model, data)
    table = Table("t", "sigma/alpha", "accuracy", "nats", title="Accuracy by time", box=SIMPLE_HEAD, pad_edge=False)
    for row in found:
        table.add_row(f"{row.t:.2f}", f"{row.rho:.3g}", f"{row.accuracy:.3f}", f"{row.nats:.3f}")
    Console().print(table)
    what = "held-out" if held_out else "training"
    echo(f"on {min(2000, len(data))} {what} samples of {data.name}")
    content = {"data": data.name, "split": what, "times": [row._asdict() for row in found]}
    write_file(folder / ACCURACY, to_json(content), replace=True)


def show_reconstructions(folder: Path, made: Setup, device: str) -> list[Path]:
    """Print how well an autoencoder reconstructs held-out data, and write figures and a picture into the run."""
    model = load(folder, device=str(device_for(device)))
    assert isinstance(model, AutoencoderModel)
    data = made.data if made.held_out is None else made.held_out
    found = quality(model, data)
    echo(found.describe())
    if found.collapsed:
        say(f"warning: {found.advice()}", "yellow")
    content = {"data": data.name, "split": "training" if made.held_out is None else "test", **found.to_dict()}
    write_file(folder / QUALITY, to_json(content), replace=True)
    if len(data.shape) != 3 or data.shape[0] not in (1, 3):
        return [folder / QUALITY]
    x = data.batch(slice(0, 12)).to(model.device)
    rows = [x, model.decode(model.encode(x))]
    save_strips(folder / PICTURE, rows, [""] * len(x), ["data", "decoded"])
    return [folder / PICTURE, folder / QUALITY]
