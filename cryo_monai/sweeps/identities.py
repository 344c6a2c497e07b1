"""What makes a trial the one it is: its configuration, its data, and the weights that it begins from.

Where things lie and how they are computed (folders, devices, workers) is left out, so that a trial that was done keeps
its name on another machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryo_monai.datalists import gather
from cryo_monai.errors import InputError
from cryo_monai.fetching import sha256_of
from cryo_monai.files import atomic_write_text
from cryo_monai.runs import CIRCUMSTANCES, HOW, PLACES
from cryo_monai.volumes import stack_member
from cryo_monai.weights import resolve_weights

KEY_LENGTH = 16


def trial_key(
    bundle: Path,
    configuration: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    *,
    data: str,
    weights: str | None,
) -> str:
    """Name a trial by the hash of its resolved configuration, data and initial weights.

    Parameters
    ----------
    bundle : Path
        Bundle folder; its name counts.
    configuration : mapping
        The bundle's configuration with overlays and ids, as a parser holds it before it resolves references.
    evaluation : mapping
        That of its evaluation, with overlays.
    data : str
        Of `DataDigests`.
    weights : str, optional
        Of `WeightDigests`, or what stands for the weights of a training that is still to be done.

    Returns
    -------
    str
        16 hexadecimal digits.
    """
    identity = {
        "bundle": bundle.name,
        "configuration": _counted(configuration),
        "evaluation": _counted(evaluation),
        "data": data,
        "weights": weights,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:KEY_LENGTH]


def _counted(configuration: Mapping[str, Any]) -> Any:
    left_out = (*CIRCUMSTANCES, *PLACES, *HOW)
    return _plain({key: value for key, value in configuration.items() if key not in left_out})


def _plain(value: Any) -> Any:
    """Leave out descriptions; write numbers that are equal alike."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items() if key != "_desc_"}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


class DataDigests:
    """Digests of data sets, by content; files that did not change since they were read are not read again.

    Parameters
    ----------
    note : Path
        JSON file of the digests of files, by path, size and times.
    """

    def __init__(self, note: Path) -> None:
        self.note = note
        self._files: dict[str, str] = {}
        self._sets: dict[Path, str] = {}
        if note.is_file():
            try:
                self._files = dict(json.loads(note.read_text()))
            except ValueError:
                note.unlink()  # damaged: computed anew

    def of(self, place: Path) -> str:
        """Digest an NPZ file, or the names, labels, sources, splits and bytes of the volumes of a data set.

        Raises
        ------
        InputError
            When there is no data set, or a file of it cannot be read.
        """
        if place not in self._sets:
            known = len(self._files)
            try:
                is_array = place.is_file() and place.suffix == ".npz"
                self._sets[place] = self._file(place) if is_array else self._listed(place)
            except OSError as error:
                raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from error
            if len(self._files) > known:
                atomic_write_text(self.note, json.dumps(self._files, indent=1) + "\n")
        return self._sets[place]

    def _listed(self, place: Path) -> str:
        data = gather(place)
        root = place if place.is_dir() else place.parent
        rows = []
        for split, items in data.lists.items():
            # The order of a list that is given decides the order of batches; what is split here is sorted first.
            for item in items if data.is_split else sorted(items, key=lambda item: str(item["path"])):
                path = Path(item["path"])
                name = path.relative_to(root) if path.is_relative_to(root) else path
                content = self._file(Path(stack_member(item["image"])[0]))
                rows.append([split, str(name), item["label"], item["source"], content])
        return hashlib.sha256(json.dumps([rows, data.class_names]).encode()).hexdigest()

    def _file(self, file: Path) -> str:
        status = file.stat()
        # ctime and inode also change where copies keep the time: cp -p, rsync -t.
        key = f"{file} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
        if key not in self._files:
            self._files[key] = sha256_of(file)
        return self._files[key]


class WeightDigests:
    """Digests of the weights that trials begin from; every file is read once."""

    def __init__(self) -> None:
        self._known: dict[Path, str] = {}

    def of(self, backbone: str, weights: str | None) -> str | None:
        """Return the SHA-256 of the file that the id ``weights`` stands for; None for random weights.

        Raises
        ------
        InputError
            When it is not there.
        """
        if not weights:
            return None
        file, _ = resolve_weights(backbone, weights)
        if not file.is_file():
            raise InputError(f"{file}: no such file of weights")
        if file not in self._known:
            self._known[file] = sha256_of(file)
        return self._known[file]
