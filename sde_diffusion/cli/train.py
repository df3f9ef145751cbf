"""`sdediff train`."""

from __future__ import annotations

import os
import time
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from sde_diffusion.cli.options import DeviceOption
from sde_diffusion.data import NAMES, load_data
from sde_diffusion.data.augment import LABELS
from sde_diffusion.models.score_model import PREDICTS
from sde_diffusion.networks import NETWORKS
from sde_diffusion.networks.embeddings import EMBEDDINGS
from sde_diffusion.sampling import generate
from sde_diffusion.sde import SDES
from sde_diffusion.storage import sample_record
from sde_diffusion.storage.locate import find_model, new_run, run_to_resume, unused
from sde_diffusion.training.config import PRECISIONS, SCHEDULES, TRACKERS, TrainConfig
from sde_diffusion.training.config_file import read_options
from sde_diffusion.training.defaults import default_model, default_options
from sde_diffusion.training.loss_weights import LOSS_WEIGHTS
from sde_diffusion.training.time_sampling import TIME_SAMPLERS
from sde_diffusion.training.training_run import train as run_training
from solvers.errors import InputError

EXAMPLES = """
\b
Examples:
sdediff train                              the bundled digits, VP
sdediff train --sde vp --steps 500         a quick look
sdediff train --data moons --sde flow      points of the plane
sdediff train --data cats/ --out my-cats   a folder of images
sdediff train --data mnist --data-dir data
sdediff train --labels                     for guidance
sdediff train --config cats.toml           every option from a file
sdediff train --resume                     go on with the latest run
accelerate launch -m sde_diffusion train --out DIR  all GPUs
"""
DEFAULT = {field.name: str(field.default) if field.default != () else "none" for field in fields(TrainConfig)}
DATA, MODEL, STEPS, NETWORK = "Data and run", "Model", "Training", "Network"


def option(name: str, text: str, panel: str, default: str | bool = False) -> Any:
    """An option that is absent unless given, with the default that then holds in its help."""
    return typer.Option(name, help=text, rich_help_panel=panel, show_default=default)


def choices(names: Any) -> str:
    """Names for a help text."""
    return ", ".join(names)


def setting(name: str, text: str) -> Any:
    """An option of the same name as a field of TrainConfig, or nearly."""
    renamed = {"lr": "learning_rate", "ema-width": "ema_widths", "labels": "labels"}
    field = renamed.get(name, name.replace("-", "_"))
    return option(f"--{name}", text, STEPS, DEFAULT[field])


def train(
    data: Annotated[
        str | None,
        option(
            "--data",
            f"Training data: {choices(NAMES)}; or the path of an .npy or .npz file or a folder of images.",
            DATA,
            "digits",
        ),
    ] = None,
    data_dir: Annotated[Path | None, option("--data-dir", "Folder with the files of mnist and cifar10.", DATA)] = None,
    out: Annotated[
        Path | None,
        option(
            "--out",
            "Folder of the run; with --resume, the run to go on with.",
            DATA,
            "runs/DATA-SDE",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run in --out, or the latest, from its newest whole checkpoint.",
            rich_help_panel=DATA,
        ),
    ] = False,
    config_file: Annotated[
        Path | None,
        option("--config", "A TOML file with any of these options; every run keeps one as config.toml.", DATA),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Resume with other options than before.", rich_help_panel=DATA)
    ] = False,
    sde: Annotated[str | None, option("--sde", f"The forward process: {choices(SDES)}.", MODEL, "vp")] = None,
    predicts: Annotated[
        str | None,
        option(
            "--predicts",
            f"What the network outputs: {choices(PREDICTS)}.",
            MODEL,
            "velocity; edm for ve and edm",
        ),
    ] = None,
    beta_min: Annotated[float | None, option("--beta-min", "beta at t = 0 (vp, subvp).", MODEL, "0.1")] = None,
    beta_max: Annotated[float | None, option("--beta-max", "beta at t = 1 (vp, subvp).", MODEL, "20.0")] = None,
    sigma_min: Annotated[float | None, option("--sigma-min", "Smallest sigma (ve).", MODEL, "0.01")] = None,
    sigma_max: Annotated[float | None, option("--sigma-max", "Largest sigma (ve, edm).", MODEL, "50, edm 80")] = None,
    steps: Annotated[int | None, setting("steps", "Updates of the weights.")] = None,
    batch_size: Annotated[int | None, setting("batch-size", "Samples in one update.")] = None,
    lr: Annotated[float | None, setting("lr", "Learning rate of AdamW after the warm-up.")] = None,
    warmup: Annotated[int | None, setting("warmup", "Updates over which the learning rate rises from 0.")] = None,
    schedule: Annotated[
        str | None,
        setting("schedule", f"Learning-rate schedule after warm-up: {choices(SCHEDULES)}."),
    ] = None,
    weight_decay: Annotated[float | None, setting("weight-decay", "Weight decay of AdamW.")] = None,
    clip: Annotated[float | None, setting("clip", "Largest norm of the gradient.")] = None,
    weight: Annotated[
        str | None, option("--weight", f"Weight over time: {choices(LOSS_WEIGHTS)}.", STEPS, "by --predicts")
    ] = None,
    times: Annotated[
        str | None,
        option("--time-sampling", f"How times are drawn: {choices(TIME_SAMPLERS)}.", STEPS, "by --predicts"),
    ] = None,
    t_min: Annotated[float | None, setting("t-min", "Smallest time that is trained on.")] = None,
    labels: Annotated[
        bool | None,
        typer.Option(
            "--labels/--no-labels", help="Train class-conditionally.", rich_help_panel=STEPS, show_default="no-labels"
        ),
    ] = None,
    drop_label: Annotated[float | None, setting("drop-label", "Probability of hiding a label, for guidance.")] = None,
    flip: Annotated[
        bool | None,
        typer.Option(
            "--flip/--no-flip", help="Random horizontal flips.", rich_help_panel=STEPS, show_default="no-flip"
        ),
    ] = None,
    augment: Annotated[
        float | None, setting("augment", "Probability of each part of EDM's augmentation of images, such as 0.12.")
    ] = None,
    ema: Annotated[
        list[float] | None,
        setting("ema", "Decay of the average of the weights, in [0, 1). Given again: one more average."),
    ] = None,
    ema_widths: Annotated[
        list[float] | None,
        setting("ema-width", "Width of a power average, such as 0.05; with two, any other can be made later."),
    ] = None,
    snapshot_every: Annotated[
        int | None, setting("snapshot-every", "Updates from one snapshot of the power averages to the next.")
    ] = None,
    precision: Annotated[str | None, setting("precision", f"Precision of the network: {choices(PRECISIONS)}.")] = None,
    accumulate: Annotated[int | None, setting("accumulate", "Parts in which a batch is computed.")] = None,
    tracker: Annotated[str | None, setting("tracker", f"Also log metrics to {choices(TRACKERS)}.")] = None,
    seed: Annotated[int | None, setting("seed", "Seed of weights, data order, times, noise and dropout.")] = None,
    device: DeviceOption = None,
    log_every: Annotated[
        int | None, setting("log-every", "Updates from one line of metrics.jsonl to the next.")
    ] = None,
    checkpoint_every: Annotated[
        int | None, setting("checkpoint-every", "Updates from one checkpoint to the next.")
    ] = None,
    keep: Annotated[int | None, setting("keep", "Checkpoints that are kept, the newest.")] = None,
    network: Annotated[str | None, option("--network", f"{choices(NETWORKS)}.", NETWORK, "by the data")] = None,
    width: Annotated[int | None, option("--width", "Hidden width of an MLP.", NETWORK, "by the data")] = None,
    depth: Annotated[int | None, option("--depth", "Residual blocks of an MLP.", NETWORK, "4")] = None,
    channels: Annotated[int | None, option("--channels", "Base channels of a U-Net.", NETWORK, "by the data")] = None,
    blocks: Annotated[int | None, option("--blocks", "Blocks per level of a U-Net.", NETWORK, "by the data")] = None,
    dropout: Annotated[
        float | None,
        option("--dropout", "Probability of dropping a value.", NETWORK, "by the data"),
    ] = None,
    embedding: Annotated[
        str | None,
        option("--embedding", f"Time embedding: {choices(EMBEDDINGS)}.", NETWORK, "log; with edm sinusoidal"),
    ] = None,
) -> None:
    """Train a score model by denoising score matching.

    Images get a U-Net and everything else an MLP, of a size that suits the data. The run is a
    folder with config.json, metrics.jsonl, checkpoints and a picture of samples. Ctrl-C saves a
    checkpoint and stops; --resume goes on, and resumed training is bit-identical.
    """
    file = read_options(config_file) if config_file else {}
    options = {name: file[name] for name in DEFAULT if name in file} | given(
        steps=steps, batch_size=batch_size, learning_rate=lr, warmup=warmup, schedule=schedule,
        weight_decay=weight_decay, clip=clip, weight=weight, times=times, t_min=t_min, labels=labels,
        drop_label=drop_label, flip=flip, augment=augment, ema=one_or_more(ema), ema_widths=ema_widths,
        snapshot_every=snapshot_every, precision=precision, accumulate=accumulate, seed=seed, device=device,
        tracker=tracker, log_every=log_every, checkpoint_every=checkpoint_every, keep=keep,
    )  # fmt: skip
    data, data_dir, out = data or file.get("data"), data_dir or file.get("data_dir"), out or file.get("out")
    rank, several = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and out is None:
        raise InputError("several processes train together: say where the run is with --out")
    config, like, data_name = TrainConfig(), None, data or "digits"
    if resume:
        out, before = run_to_resume(out)
        config, like = TrainConfig(**before["train"]), before["model"]
        data_name = data or before["data"]["name"]
    config = config.with_options(options)
    samples = load_data(data_name, data_dir)
    shape = given(width=width, depth=depth, channels=channels, blocks=blocks, dropout=dropout, embedding=embedding)
    shape = {**file.get("network", {}), **shape}
    if config.labels and not resume:
        shape = {"classes": samples.classes, **shape}
    if config.augment and not resume:
        shape = {"context": LABELS, **shape}
    model = default_model(
        samples,
        sde=sde or file.get("sde"),
        predicts=predicts or file.get("predicts"),
        network=network or shape.pop("name", None),
        sde_settings={
            **file.get("process", {}),
            **given(beta_min=beta_min, beta_max=beta_max, sigma_min=sigma_min, sigma_max=sigma_max),
        },
        network_settings=shape,
        seed=config.seed,
        like=like,
    )
    if not resume:
        suited = default_options(model.predicts)
        config = config.with_options({name: value for name, value in suited.items() if name not in options})
    out = Path(out) if out else new_run(data_name, sde or file.get("sde") or "vp")

    def echo(text: str) -> None:
        if rank == 0:
            typer.echo(text)

    size = sum(p.numel() for p in model.network.parameters())
    echo(samples.describe())
    echo(f"{model.sde}; {model.network.name} with {size:,} parameters predicts {model.predicts}")
    echo(f"run {out}, {config.steps} steps; after an interruption: sdediff train --resume --out {out}")
    start = time.perf_counter()
    run_training(model, samples, config, out=out, resume=resume, force=force)
    if rank > 0:
        return
    echo(f"trained in {time.perf_counter() - start:.0f} s")
    drawn = generate.draw(find_model(out), device=config.device)
    picture = sample_record.save(drawn, unused(out / "samples" / f"pf-ode-step-{config.steps:06d}"))
    echo(f"next: sdediff sample {out} --solver pf-ode --nfe 20")
    echo(f"{'picture' if picture.suffix == '.png' else 'arrays'} {picture}")


def one_or_more(values: list[float] | None) -> float | list[float] | None:
    """A single value by itself."""
    return values[0] if values is not None and len(values) == 1 else values


def given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None and value != []}
