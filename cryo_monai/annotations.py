"""What annotation servers ask of a bundle: labels that are files, training on from what is served, uncertainty.

MONAI Label puts its own lists in the place of a bundle's: items of an image and a label, both paths of files. It scores
volumes it has no label for by asking a network with dropout several times.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from operator import index as as_index
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from ignite.engine import Engine, Events
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from cryo_monai.checkpoints import load_verified
from cryo_monai.datalists import SPLITS, Datalist, Item, load_json, numbered
from cryo_monai.datasets import CachedVolumes
from cryo_monai.errors import DatasetError, InputError
from cryo_monai.networks import VideoClassifier, read_description
from cryo_monai.parallel import is_first
from cryo_monai.volumes import NIFTI_SUFFIXES

LABEL_SUFFIXES = (".json", ".txt", *NIFTI_SUFFIXES)
# What MONAI Label's LocalDatastore calls its index (monailabel/datastore/local.py), two folders above a label.
DATASTORE = "datastore_v2.json"


def read_annotation(path: str | os.PathLike[str], class_names: Sequence[str]) -> int:
    """Read the class that an annotator gave a volume.

    Parameters
    ----------
    path : path
        JSON: the name or the index of a class, or ``{"label": ...}`` with one of them, or what MONAI Label answers to
        ``/infer``, of which the highest score counts. Text: the name or the index. NIfTI: a label map in which one
        class is painted, anywhere and of any size; its value is the index plus one, or what MONAI Label's index of
        labels says that it is (3D Slicer's names of segments).
    class_names : sequence of str
        Names by index; capital letters do not matter where they do not tell classes apart.

    Raises
    ------
    InputError
        One line naming the file, the reason and the classes there are.
    """
    file = Path(path)
    lower = file.name.lower()
    if lower.endswith(NIFTI_SUFFIXES):
        return _painted_class(file, class_names)
    if lower.endswith(".json"):
        return _class_index(_said_in_json(load_json(file)), class_names, file)
    if lower.endswith(".txt"):
        try:
            return _class_index(file.read_text(encoding="utf-8-sig").strip(), class_names, file)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file}: not readable as text ({error})") from error
    raise InputError(f"{file}: labels end in {', '.join(LABEL_SUFFIXES)}")


def _said_in_json(content: Any) -> Any:
    if not isinstance(content, Mapping):
        return content
    if isinstance(scores := content.get("prediction"), list) and scores:
        # ClassificationWriter, monailabel/transform/writer.py: [{"idx": 0, "label": "name", "score": 0.9}, ...]
        known = [row for row in scores if isinstance(row, Mapping) and isinstance(row.get("score"), (int, float))]
        return max(known, key=lambda row: row["score"]).get("idx") if known else None
    return content.get("label")


def _class_index(said: Any, class_names: Sequence[str], file: Path) -> int:
    """Return the index of a class that is named, or given by its index as a number or in digits."""
    if isinstance(said, str):
        for alike in (str, str.casefold):
            found = [index for index, name in enumerate(class_names) if alike(name) == alike(said.strip())]
            if len(found) == 1:
                return found[0]
        said = int(said) if said.strip().isdecimal() else said
    if isinstance(said, int) and not isinstance(said, bool) and 0 <= said < len(class_names):
        return said
    raise InputError(f"{file}: {said!r} is no class; give the name or the index of one of {_listed(class_names)}")


def _listed(class_names: Sequence[str]) -> str:
    return ", ".join(f"{index} {name}" for index, name in enumerate(class_names))


def _painted_class(file: Path, class_names: Sequence[str]) -> int:
    try:
        values = np.unique(np.asanyarray(nibabel.load(file).dataobj))
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError, HeaderDataError) as error:
        raise InputError(f"{file}: {(str(error).splitlines() or [type(error).__name__])[0]}") from error
    if values.dtype.kind not in "biuf":
        raise InputError(f"{file}: no label map: its voxels are not numbers, but {values.dtype}")
    if (wrong := values[~np.isfinite(values) | (values != np.round(values))]).size:
        raise InputError(f"{file}: {wrong[0]} is painted in this label map; paint one class with a whole number")
    painted = [int(value) for value in values if value != 0]
    if len(painted) != 1:
        raise InputError(f"{file}: {len(painted)} classes are painted in this label map, not one")
    names = _segment_names(file)
    said = names.get(painted[0], painted[0] - 1)
    return _class_index(said, class_names, file)


def _segment_names(file: Path) -> dict[int, str]:
    """Return the names of the values of a label map, where MONAI Label's index of labels has them."""
    index = file.parents[2] / DATASTORE if len(file.parents) > 2 else Path(DATASTORE)
    if not index.is_file():
        return {}
    content = load_json(index)
    # {"objects": {image: {"labels": {tag: {"info": {"name": file, "label_info": [{"name": segment, "idx": value}]}}}}}}
    try:
        for entry in content.get("objects", {}).values():
            info = entry.get("labels", {}).get(file.parent.name, {}).get("info", {})
            if info.get("name") == file.name:
                return {as_index(segment["idx"]): segment["name"] for segment in info.get("label_info", [])}
    except (AttributeError, KeyError, TypeError) as error:  # parts of other types than MONAI Label writes
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{index}: not an index of labels of MONAI Label ({reason}); repair or remove it") from error
    return {}


class AbsentItems(Sequence[Item]):
    """A list that is not there: whoever looks into it gets the reason.

    Parameters
    ----------
    error : InputError
        The reason.
    """

    def __init__(self, error: InputError) -> None:
        self.error = error

    def __len__(self) -> int:
        raise self.error

    def __getitem__(self, index: Any) -> Any:
        raise self.error

    def __add__(self, other: Sequence[Item]) -> AbsentItems:
        return self


def bundle_datalist(
    load: Callable[..., Datalist],
    bundle_root: str | os.PathLike[str],
    *,
    dataset_dir: str | os.PathLike[str],
    **options: Any,
) -> Datalist:
    """Load a data set; a bundle without one of its own may still be given items by the program that runs it.

    Parameters
    ----------
    load : callable
        `load_datalist` or `load_medmnist`.
    bundle_root : path
        Whose ``data`` folder may be missing: then the lists raise what ``load`` raised, but only when they are looked
        into, and the classes are those of ``models/model.pt``, or else of ``configs/metadata.json``.
    dataset_dir : path
        For ``load``.
    **options : object
        For ``load``, which refuses what it does not know.

    Raises
    ------
    InputError
        When a data set elsewhere, or one that is there, cannot be loaded.
    """
    try:
        return load(dataset_dir=dataset_dir, **options)
    except InputError as error:
        root, place = Path(bundle_root), Path(dataset_dir)
        if isinstance(error, DatasetError) or place.exists() or place.resolve() != (root / "data").resolve():
            raise
        class_names = _bundle_classes(root)
        if not class_names:
            raise
        return {name: AbsentItems(error) for name in SPLITS} | {"class_names": class_names}


def _bundle_classes(root: Path) -> list[str]:
    model = root / "models" / "model.pt"
    if model.is_file():
        state = load_verified(model).get("_extra_state")
        if state is not None:
            return [str(name) for name in read_description(state)["class_names"]]
    metadata = root / "configs" / "metadata.json"
    if not metadata.is_file():
        return []
    channels = load_json(metadata)["network_data_format"]["outputs"]["pred"]["channel_def"]
    return [str(channels[key]) for key in sorted(channels, key=int)]


class AnnotatedVolumes(CachedVolumes):
    """`CachedVolumes` that also takes items whose labels are files; see `read_annotation`.

    Parameters
    ----------
    data : sequence of dict
        Items of `load_datalist`, or of an annotation server: ``image`` and ``label``, both paths.
    transform : transform
        Deterministic preprocessing; see `LoadVolumed`.
    class_names : sequence of str
        Names by label.
    also_check : sequence of dict
        See `CachedVolumes`; not looked at when the items come from an annotation server.
    num_workers, progress, cache_dir : object
        See `CachedVolumes`.

    Attributes
    ----------
    annotated : bool
        Whether the items came from an annotation server.

    Raises
    ------
    DatasetError
        Naming each label and each volume that cannot be used.
    InputError
        When there are no items.
    """

    def __init__(
        self,
        data: Sequence[Item],
        transform: Any,
        *,
        class_names: Sequence[str],
        also_check: Sequence[Item] = (),
        num_workers: int = 2,
        progress: bool = True,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        if len(data) == 0:
            raise InputError("no labelled volumes in a split; label more, or change the share for validation")
        self.annotated = any(isinstance(item["label"], (str, os.PathLike)) for item in data)
        if self.annotated:
            data, also_check = _read_annotations(data, class_names), ()
        super().__init__(
            data,
            transform,
            also_check=also_check,
            num_workers=num_workers,
            progress=progress,
            cache_dir=cache_dir,
        )


def _read_annotations(data: Sequence[Item], class_names: Sequence[str]) -> list[Item]:
    items, problems = [], []
    for item in data:
        try:
            label = read_annotation(item["label"], class_names)
        except InputError as error:
            problems.append(str(error))
            continue
        items.append({"image": str(item["image"]), "label": label, "path": str(item["image"]), "source": ""})
    if problems:
        raise DatasetError("labels", problems)
    return numbered(items)


class AnnotationTraining:
    """Trainer handler: what a program that goes on training a served model needs beside its weights.

    At the start the temperature returns to 1: MONAI Label loads the served model, with the temperature of its
    validation, into the network that is to be trained. At the end of a training on a server's annotations ``model.pt``
    alone stays: MONAI Label would offer, and serve, any other ``.pt`` file there as a model.

    Parameters
    ----------
    network : VideoClassifier
        The network being trained.
    dataset : AnnotatedVolumes
        What it is trained on.
    ckpt_dir : path
        Folder of the checkpoints.
    """

    def __init__(
        self, network: VideoClassifier, *, dataset: AnnotatedVolumes, ckpt_dir: str | os.PathLike[str]
    ) -> None:
        self.network = network
        self.annotated = dataset.annotated
        self.folder = Path(ckpt_dir)

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        if self.annotated:
            engine.add_event_handler(Events.COMPLETED, self._leave_the_model)

    def _start(self, engine: Engine) -> None:
        self.network.temperature = 1.0

    def _leave_the_model(self, engine: Engine) -> None:
        if is_first():
            for name in ("last.pt", "previous.pt", "superseded.pt"):
                (self.folder / name).unlink(missing_ok=True)
