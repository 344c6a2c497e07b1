"""Where the data of trials are, whether they can be used, and what is in them."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from cryo_monai.errors import InputError, unwrapped_errors
from cryo_monai.sweeps.identities import DataDigests
from cryo_monai.sweeps.outcomes import Cell, named
from cryo_monai.sweeps.sweep_files import Sweep

DATASET = "dataset"
GENERATED = "generated"


class TrialData:
    """Finds, checks and digests the data sets of a sweep, each once.

    Parameters
    ----------
    sweep : Sweep
        Of `read_sweep`.
    folder : Path
        Of the sweep.
    data : mapping
        Data set to its folder or file; ``""`` to a folder for all others.

    Raises
    ------
    InputError
        For data sets that the sweep does not have.
    """

    def __init__(self, sweep: Sweep, folder: Path, data: Mapping[str, str | os.PathLike[str]]) -> None:
        self.sweep = sweep
        self.folder = folder
        self.given = {name: Path(place).resolve() for name, place in data.items()}
        self._digests = DataDigests(folder / "data_digests.json")
        self._checked: dict[tuple[Any, ...], dict[str, int]] = {}
        self._refuse_others()

    def _refuse_others(self) -> None:
        """Refuse folders for data sets that the sweep does not have."""
        known = [str(value.name) for value in self.sweep.axes.get(DATASET, [])]
        if "" in self.given and not known:
            raise InputError(f"{self.sweep.path}: has no axis {DATASET!r}; give --dataset_dir instead of --data DIR")
        of_pretraining = [dataset for dataset, _ in self.sweep.pretrained.values() if dataset is not None]
        known = list(dict.fromkeys([*known, *of_pretraining]))
        for name in self.given:
            if not known:
                raise InputError(f"{self.sweep.path}: has no axis {DATASET!r}; give --dataset_dir instead of --data")
            if name and name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
                raise InputError(f"--data {name}: no such data set in {self.sweep.path}; {hint}")

    def place(self, cell: Cell, ids: Mapping[str, Any]) -> Path | None:
        """Return where the data of a cell are; None where ids say it."""
        if DATASET not in cell:
            return None
        name = str(cell[DATASET])
        place = self.given.get(name, self.given.get(""))
        if place is None and name in self.sweep.data:
            place = self.folder / "data" / name
        if place is None and "dataset_dir" not in ids:
            raise InputError(
                f"{name}: no data; give --data {name}=DIR, or leave it out: --only {DATASET}="
                + "|".join(str(value.name) for value in self.sweep.axes[DATASET] if value.name != name)
            )
        return place

    def counted(self, cell: Cell, parser: ConfigParser) -> tuple[dict[str, int], str]:
        """Check the data of a trial, count them by split, and digest them; what is generated has no digest."""
        if "datalist" not in parser:
            return {
                "training": int(parser.get_parsed_content("clips_per_epoch")),
                "validation": 0,
                "test": 0,
            }, GENERATED
        place = Path(parser.get_parsed_content("dataset_dir"))
        options = ("dataset_name", "dataset_size", "num_classes", "split", "split_by", "permissive", "nan")
        key = (str(place), *(str(parser.get(name)) for name in options))
        if key not in self._checked:
            configuration = copy.deepcopy(parser.get()) | {"label_fraction": 1.0}
            with about(cell), unwrapped_errors():
                lists = ConfigParser(configuration).get_parsed_content("datalist")
            self._checked[key] = {split: len(lists[split]) for split in ("training", "validation", "test")}
        if parser.get("dataset_name"):
            size = parser.get_parsed_content("dataset_size")
            place = place / (parser.get_parsed_content("dataset_name") + ("" if size == 28 else f"_{size}") + ".npz")
        return self._checked[key], self._digests.of(place)


def network_of(parser: ConfigParser) -> dict[str, Any]:
    """Return the ids by which `initialise` refuses a checkpoint of another training, with their values."""
    return {name: parser.get_parsed_content(name) for name in ("backbone", "intensity") if name in parser}


def refuse_other_network(network: Mapping[str, Any], pretrained: Mapping[str, Any], name: str) -> None:
    """Refuse to begin from a pre-training of another network, hours before its weights would be refused.

    Raises
    ------
    InputError
    """
    for key, value in network.items():
        if value != pretrained.get(key, value):
            raise InputError(f"{key} {value!r}: pre-training {name!r} has {pretrained[key]!r}")


@contextmanager
def about(cell: Cell) -> Iterator[None]:
    """Say which cell an error is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{named(cell)}: {error}") from error
