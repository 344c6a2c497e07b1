"""MedMNIST3D: the six official data sets, with official splits and checked files."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cryo_monai.datalists import SPLITS, Datalist, Item, numbered
from cryo_monai.errors import InputError
from cryo_monai.label_fractions import labelled_subset


def load_medmnist(
    flag: str,
    dataset_dir: str | os.PathLike[str],
    *,
    size: int = 28,
    num_classes: int | None = None,
    label_fraction: float = 1.0,
    seed: int = 0,
    download: bool = False,
) -> Datalist:
    """Read a MedMNIST3D data set with its official splits.

    Parameters
    ----------
    flag : str
        One of the six 3-D flags of ``medmnist.INFO``, such as ``"organmnist3d"``.
    dataset_dir : path
        Folder with the official ``.npz`` file; created when downloading.
    size : int
        28 or 64, the edge of the volumes in voxels.
    num_classes : int, optional
        What the network expects; a different number of classes is an error.
    label_fraction : float
        Share of the training split that is kept; see `labelled_subset`.
    seed : int
        Of that choice.
    download : bool
        Fetch the file with medmnist when it is not there.

    Returns
    -------
    dict
        As `load_datalist`; ``image`` holds uint8 arrays `(z, y, x)`.

    Raises
    ------
    InputError
        For an unknown flag or size, a missing file (naming URL, md5 and where to put it), or a wrong md5, which is
        compared for files already on disk too.
    """
    info = _medmnist_info(flag)
    if size not in (28, 64):
        raise InputError(f"medmnist size {size}: MedMNIST3D comes in 28 and 64")
    suffix = "" if size == 28 else f"_{size}"
    file = Path(dataset_dir) / f"{flag}{suffix}.npz"
    url, md5 = info[f"url{suffix}"], info[f"MD5{suffix}"]
    if not file.is_file() and download:
        _download_medmnist(info["python_class"], file, size, url, md5)
    if not file.is_file():
        raise InputError(f"{file}: not there; download {url} (md5 {md5}) to that path, or add --download True")
    found = _md5(file)
    if found != md5:
        raise InputError(f"{file}: md5 {found} is not the official {md5}; delete it and download {url} again")
    class_names = [str(info["label"][key]) for key in sorted(info["label"], key=int)]
    if num_classes is not None and len(class_names) != num_classes:
        raise InputError(
            f"{file}: {len(class_names)} classes, but the network has {num_classes}; "
            f"add --num_classes {len(class_names)}"
        )
    lists, _ = read_medmnist(file)
    lists["training"] = labelled_subset(lists["training"], label_fraction, seed)
    return {name: numbered(lists[name]) for name in SPLITS} | {"class_names": class_names}


def read_medmnist(path: str | os.PathLike[str]) -> tuple[dict[str, list[Item]], list[str]]:
    """Read all splits of a MedMNIST3D file, and the names of its classes if it has its official name.

    Parameters
    ----------
    path : path
        NPZ with ``train_images``, ``train_labels`` and so on.

    Raises
    ------
    InputError
        When the file is no such NPZ.
    """
    file = Path(path)
    try:
        with np.load(file, allow_pickle=False) as arrays:
            lists = {
                name: _medmnist_items(file, part, arrays[f"{part}_images"], arrays[f"{part}_labels"])
                for name, part in zip(SPLITS, ("train", "val", "test"), strict=True)
            }
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{file}: not a MedMNIST3D file ({error})") from error
    return lists, _medmnist_class_names(file)


def _medmnist_class_names(file: Path) -> list[str]:
    """Return the official names of the classes of a file under its official name; else nothing."""
    from medmnist import INFO

    labels = INFO.get(file.stem.removesuffix("_64"), {}).get("label", {})
    return [str(labels[key]) for key in sorted(labels, key=int)]


def _medmnist_info(flag: str) -> dict[str, Any]:
    from medmnist import INFO  # imports torchvision: only when MedMNIST is used
    from monai.utils import look_up_option

    flags = [name for name in INFO if name.endswith("3d")]
    try:
        look_up_option(flag, flags)
    except ValueError as error:
        raise InputError(f"dataset_name: {flag!r} is not one of {', '.join(flags)}") from error
    info: dict[str, Any] = INFO[flag]
    return info


def _download_medmnist(class_name: str, file: Path, size: int, url: str, md5: str) -> None:
    import medmnist

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        getattr(medmnist, class_name)(split="train", root=str(file.parent), size=size, download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error.__cause__ or error.__context__ or error).split())
        raise InputError(
            f"{file}: download failed ({reason[:120]}); fetch {url} (md5 {md5}) and put it there"
        ) from error


def _medmnist_items(file: Path, part: str, images: npt.NDArray[Any], labels: npt.NDArray[Any]) -> list[Item]:
    flat = labels.reshape(-1).astype(np.int64)
    return [
        {"image": image, "label": int(label), "path": f"{file.name}:{part}/{number}"}
        for number, (image, label) in enumerate(zip(images, flat, strict=True))
    ]


def _md5(file: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()
