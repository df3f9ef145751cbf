"""What labels a guided network draws: accuracy by a classifier of clean images, and spread within a class.

    python -m benchmarks.guidance --write
    python -m benchmarks.guidance --run RUN --judge mnist --data-dir DIR

Classifier-free guidance of the bundled network of labelled digits, and classifier guidance of the bundled network
without labels by benchmarks/networks/digits-noisy-classifier.safetensors. With ``--run`` classifier-free guidance of
that run.

The judge is a classifier that comes with the package. Its accuracy on test images bounds what accuracy means here. The
spread is the root of the trace of the covariance of its features within a class, mean over the classes, over that of
the training data: 1 for samples as varied as the data, less where guidance narrows them.

The bundled network and the classifier were trained with the commands in the .json files beside them.
"""

from __future__ import annotations

import argparse
import json
import math
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
RESULTS = HERE / "results" / "guided-labels"
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


def rows(run: Path | None, judge: str, data_dir: Path | None, n: int, seed: int = 0) -> list[dict[str, Any]]:
    """One row for each kind of guidance and scale, the spread over that of the training data."""
    data = load_data(judge, data_dir)
    assert data.labels is not None
    some = torch.linspace(0, len(data) - 1, min(len(data), 5000), dtype=torch.float64).long()
    own = spread(classifier(judge)(data.batch(some)).features, data.labels[some])
    asked = [("classifier-free", checkpoint_at(run or LABELLED), GuidanceSettings(w), w) for w in SCALES]
    if run is None:
        noisy, plain = find_classifier(NOISY), checkpoint_at(BUNDLED)
        asked += [("classifier", plain, GuidanceSettings(classifier=noisy, classifier_scale=w), w) for w in SCALES]
    found = []
    for kind, stored, guidance, w in asked:
        row = measured(stored, guidance, judge, n, seed)
        row["spread"] /= own
        found.append({"guidance": kind, "scale": w, **row})
        print(json.dumps(found[-1]), flush=True)
    return found


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
    parser.add_argument("--run", type=Path, help="a run with labels; the bundled network by default")
    parser.add_argument("--judge", default="digits", choices=("digits", "mnist"))
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}.json and .md")
    arguments = parser.parse_args()
    found = rows(arguments.run, arguments.judge, arguments.data_dir, arguments.n)
    print(table(found))
    if arguments.write:
        command = f"python -m benchmarks.guidance --n {arguments.n} --write"
        content = {"command": command, "samples": arguments.n, "steps": STEPS, "rows": found}
        RESULTS.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n")
        text = f"# Labels of guided samples\n\n{arguments.n} samples for each row; made by `{command}`.\n\n"
        RESULTS.with_suffix(".md").write_text(text + table(found) + "\n")


if __name__ == "__main__":
    main()
