"""What labels a guided network draws: accuracy by a classifier of clean images, and spread within a class.

    python -m benchmarks.guidance --write
    python -m benchmarks.guidance --judge mnist --data-dir DIR --write

Classifier-free guidance of the bundled network of labelled digits, and classifier guidance of the bundled network
without labels by benchmarks/networks/digits-noisy-classifier.safetensors; with ``--judge mnist`` classifier-free
guidance of benchmarks/networks/mnist-labelled.safetensors. ``--run`` takes another network for the first.

The judge is a classifier that comes with the package. Its accuracy on test images bounds what accuracy means here. The
spread is the root of the trace of the covariance of its features within a class, mean over the classes, over that of
the training data: 1 for samples as varied as the data, less where guidance narrows them.

The networks and the classifier were trained with the commands in the .json files beside them.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.data import load_data
from sde_diffusion.evaluation.features.pretrained_classifier import classifier
from sde_diffusion.sampling.guidance_settings import GuidanceSettings, guided_model
from sde_diffusion.sampling.sampler import sample
from sde_diffusion.storage.checkpoint import BUNDLED, LABELLED, StoredModel, checkpoint_at, load
from sde_diffusion.storage.locate import find_classifier

HERE = Path(__file__).parent.parent
NOISY = HERE / "networks" / "digits-noisy-classifier.safetensors"
MNIST = HERE / "networks" / "mnist-labelled.safetensors"
RESULTS = HERE / "results"
SCALES = (1.0, 1.5, 2.0, 3.0, 4.0)
STEPS = 20
CLASSES = 10


def spread(features: Tensor, labels: Tensor) -> float:
    """The root of the trace of the covariance within a class, mean over the classes."""
    parts = [features[labels == k].double().var(0, correction=0).sum().sqrt() for k in range(CLASSES)]
    return float(torch.stack(parts).mean())


def measured(stored: StoredModel, guidance: GuidanceSettings, judge: str, n: int, seed: int) -> dict[str, Any]:
    """Accuracy with its standard error, certainty and absolute spread of n samples of all classes in turn."""
    model, condition = guided_model(load(stored), n, range(CLASSES), guidance)
    nfe = STEPS * model.cost
    x = sample(model, n, nfe=nfe, seed=seed, batch_size=500, condition=condition)
    features, p = classifier(judge)(x.float())
    assert p is not None
    y = condition["label"]
    accuracy = float((p.argmax(1) == y).double().mean())
    return {
        "accuracy": accuracy,
        "accuracy_se": math.sqrt(max(accuracy * (1 - accuracy), 1 / n) / n),
        "worst_class": min(float((p.argmax(1) == y)[y == k].double().mean()) for k in range(CLASSES)),
        "certainty": float(p.gather(1, y[:, None]).double().mean()),
        "spread": spread(features, y),
        "nfe": nfe,
    }


def asked(run: Path | None, judge: str, scales: Sequence[float]) -> list[dict[str, Any]]:
    """What is measured: kind of guidance, scale, the model, its settings, and the hashes of the weights."""
    labelled = checkpoint_at(run or (LABELLED if judge == "digits" else MNIST))
    found = [
        {"guidance": "classifier-free", "scale": w, "stored": labelled, "settings": GuidanceSettings(w)} for w in scales
    ]
    if run is None and judge == "digits":
        noisy, plain = find_classifier(NOISY), checkpoint_at(BUNDLED)
        found += [
            {
                "guidance": "classifier",
                "scale": w,
                "stored": plain,
                "settings": GuidanceSettings(classifier=noisy, classifier_scale=w),
            }
            for w in scales
        ]
    for row in found:
        used = [row["stored"], *([noisy] if row["guidance"] == "classifier" else [])]
        row["sha256"] = [stored.sha256[:16] for stored in used]
    return found


def rows(
    wanted: list[dict[str, Any]], judge: str, data_dir: Path | None, n: int, before: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """One row for each kind of guidance and scale, the spread over that of the training data.

    Rows of ``before`` from the same weights and number of samples are taken as they are.
    """
    data = load_data(judge, data_dir)
    assert data.labels is not None
    some = torch.linspace(0, len(data) - 1, min(len(data), 5000), dtype=torch.float64).long()
    own = spread(classifier(judge)(data.batch(some)).features, data.labels[some])
    for one in wanted:
        key = {name: one[name] for name in ("guidance", "scale", "sha256")} | {"samples": n}
        known = next((row for row in before if key.items() <= row.items()), None)
        if known is None:
            known = key | measured(one["stored"], one["settings"], judge, n, seed=0)
            known["spread"] /= own
            print(json.dumps(known), flush=True)
        yield known


def table(found: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| guidance | scale | NFE | accuracy | worst class | certainty | spread / data's |", "| --- " * 7 + "|"]
    lines += [
        f"| {row['guidance']} | {row['scale']:g} | {row['nfe']} | {row['accuracy']:.3f} +- {row['accuracy_se']:.3f} "
        f"| {row['worst_class']:.2f} | {row['certainty']:.3f} | {row['spread']:.2f} |"
        for row in found
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, and with --write store the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run with labels")
    parser.add_argument("--judge", default="digits", choices=("digits", "mnist"))
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--scales", nargs="+", type=float, default=SCALES)
    parser.add_argument("--write", action="store_true", help="write results/guided-labels.json and .md, or -mnist")
    arguments = parser.parse_args()
    judge, n = arguments.judge, arguments.n
    path = RESULTS / ("guided-labels" if judge == "digits" else f"guided-labels-{judge}")
    command = "python -m benchmarks.guidance"
    command += f" --run {arguments.run.name}" if arguments.run else ""
    command += "" if judge == "digits" else f" --judge {judge} --data-dir DIR"
    command += "" if tuple(arguments.scales) == SCALES else f" --scales {' '.join(f'{w:g}' for w in arguments.scales)}"
    command += f" --n {n} --write"
    file = path.with_suffix(".json")
    before = json.loads(file.read_text())["rows"] if arguments.write and file.is_file() else []
    found: list[dict[str, Any]] = []
    for row in rows(asked(arguments.run, judge, arguments.scales), judge, arguments.data_dir, n, before):
        found.append(row)
        if arguments.write:
            kept = [old for old in before if old not in found]
            content = {"command": command, "steps": STEPS, "rows": found + kept}
            file.write_text(json.dumps(content, indent=2) + "\n")
    print(table(found))
    if arguments.write:
        file.write_text(json.dumps({"command": command, "steps": STEPS, "rows": found}, indent=2) + "\n")
        text = f"# Labels of guided samples of {judge}\n\n{n} samples for each row; made by\n`{command}`.\n\n"
        path.with_suffix(".md").write_text(text + table(found) + "\n")


if __name__ == "__main__":
    main()
