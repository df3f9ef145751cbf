"""Sources of images to prepare: folders, parquet files, Hugging Face data sets.

A source has a number of images and opens them one at a time, by index, so that they can be decoded on several
threads while no more than a few are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sde_diffusion.data.images import folder_classes, image_paths
from solvers.errors import InputError, MissingPackageError, choose

HUB = "hf:"
IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img", "images", "x"), ("label", "labels", "fine_label", "class", "y")


@dataclass(frozen=True)
class Source:
    """Images by number.

    Attributes:
        name: of all.
        count: how many.
        open: number -> (what ``images.decode`` takes, name for messages, label or None).
        classes: names of the classes, where there are any.
    """

    name: str
    count: int
    open: Callable[[int], tuple[Path | bytes | Image.Image, str, int | None]]
    classes: list[str] | None = None


def folder(root: Path) -> Source:
    """All images below a folder; if each lies in a subfolder, the subfolders directly below are the classes."""
    paths = image_paths(root)
    classes = folder_classes(root, paths)

    def get(k: int) -> tuple[Path, str, int | None]:
        return paths[k], str(paths[k]), None if classes is None else classes[1][k]

    return Source(str(root), len(paths), get, None if classes is None else classes[0])


def parquet(path: Path, image: str | None = None, label: str | None = None) -> Source:
    """A parquet file, or a folder of them: a column of encoded images, bytes or {"bytes": ...}, and one of labels.

    Args:
        path: the file or folder.
        image: its column; one of ``IMAGE_COLUMNS`` by default.
        label: likewise, of ``LABEL_COLUMNS``; none if there is none.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: no such column, one that holds no encoded images or no whole numbers, or a torn file.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingPackageError("parquet files need pyarrow: pip install 'sdediff[data]'") from None
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    try:
        readers = [pq.ParquetFile(file) for file in files]
        names = readers[0].schema_arrow.names
        column = _column(image, IMAGE_COLUMNS, names, str(path), "--image-column")
        if column is None:
            raise InputError(f"{path} has the columns {', '.join(names)}; say which holds the images: --image-column")
        labels = _column(label, LABEL_COLUMNS, names, str(path), "--label-column")
        # Positions of the rows, not the rows: a group of rows is read when one of its images is requested.
        places = [(f, g, r) for f, reader in enumerate(readers) for g, r in _groups(reader)]
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"cannot read {path} as parquet: {error}") from None
    kept: dict[tuple[int, int], Any] = {}

    def get(k: int) -> tuple[bytes, str, int | None]:
        f, g, r = places[k]
        name = f"{files[f]}, row {k}"
        if (f, g) not in kept:
            kept.clear()
            kept[f, g] = readers[f].read_row_group(g, columns=[column, *([labels] if labels else [])])
        table = kept[f, g]
        value = table[column][r].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise InputError(
                f"cannot read the image {name}: '{column}' holds no encoded image but {type(value).__name__}"
            )
        return content, name, _whole(table[labels][r].as_py(), name) if labels else None

    return Source(str(path), len(places), get)


def hugging_face(name: str, split: str = "train", image: str | None = None, label: str | None = None) -> Source:
    """A data set of the Hugging Face hub, or one that ``save_to_disk`` wrote; its own cache is used.

    Raises:
        ImportError: datasets is not installed.
        ValueError: no such split or column.
    """
    try:
        import datasets
    except ImportError:
        raise MissingPackageError("Hugging Face data sets need datasets: pip install 'sdediff[data]'") from None
    if Path(name).is_dir() and ((Path(name) / "state.json").is_file() or (Path(name) / "dataset_dict.json").is_file()):
        found = datasets.load_from_disk(name)
        found = choose(split, found, f"split of {name}") if isinstance(found, dict) else found
    else:
        found = datasets.load_dataset(name, split=split)
    column = _column(image, IMAGE_COLUMNS, found.column_names, name, "--image-column")
    if column is None:
        raise InputError(f"{name} has the columns {', '.join(found.column_names)}; say which: --image-column")
    labels = _column(label, LABEL_COLUMNS, found.column_names, name, "--label-column")
    if isinstance(found.features[column], datasets.Image):
        found = found.cast_column(column, datasets.Image(decode=False))

    def get(k: int) -> tuple[Any, str, int | None]:
        row = found[k]
        value, title = row[column], f"{name}, row {k}"
        if isinstance(value, dict):
            value = value["bytes"] if value.get("bytes") else Path(value["path"])
        return value, title, _whole(row[labels], title) if labels else None

    names = getattr(found.features[labels], "names", None) if labels else None
    return Source(f"{HUB}{name}", len(found), get, names)


def _groups(reader: Any) -> Iterable[tuple[int, int]]:
    for g in range(reader.num_row_groups):
        yield from ((g, r) for r in range(reader.metadata.row_group(g).num_rows))


def _column(asked: str | None, usual: tuple[str, ...], names: list[str], where: str, option: str) -> str | None:
    if asked is not None:
        return choose(asked, {name: name for name in names}, f"column of {where} ({option})")
    return next((name for name in usual if name in names), None)


def _whole(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InputError(f"the label of {name} is {value!r}; expected a whole number from 0 up")
    return value
