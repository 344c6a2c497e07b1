"""A sweep file and where its data are -> trials: checked, named by what they are, and placed in folders."""

from __future__ import annotations

import copy
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from cryo_monai.backbones import look_up_backbone
from cryo_monai.errors import InputError
from cryo_monai.label_fractions import labelled_subset
from cryo_monai.runs import PLACES
from cryo_monai.sweeps.identities import WeightDigests, trial_key
from cryo_monai.sweeps.outcomes import Cell, Value, named
from cryo_monai.sweeps.sweep_files import Setting, Sweep
from cryo_monai.sweeps.trial_data import DATASET, TrialData, about, network_of, refuse_other_network
from cryo_monai.weight_records import KINDS
from cryo_monai.workflows import has_workflow, load_workflow

PRETRAINED = "pretrained"


@dataclass(frozen=True)
class Trial:
    """A run of a bundle, to be done once.

    Attributes
    ----------
    key : str
        See `trial_key`.
    cell : dict
        Axis to the name of its value.
    folder : Path
        Run folder.
    bundle : str
        Bundle folder.
    overlays : tuple of str
        Overlay files.
    ids : dict
        Overrides.
    max_epochs : int
        That it trains for.
    volumes : float
        Volumes or generated clips that an epoch passes through the network, those without gradient counting a third:
        its cost.
    after : tuple of str
        Keys of trials that have to be done before.
    """

    key: str
    cell: Cell
    folder: Path
    bundle: str
    overlays: tuple[str, ...]
    ids: dict[str, Any]
    max_epochs: int
    volumes: float
    after: tuple[str, ...] = ()

    @property
    def cost(self) -> float:
        """What it costs beside others of the same network."""
        return self.max_epochs * self.volumes

    def command(self) -> str:
        """Return the command that does, or goes on with, this trial alone."""
        arguments = ["cryo-monai", "train", self.bundle, str(self.folder), "--idempotent", "True", "--report", "False"]
        if self.overlays:
            arguments += ["--overlays", ",".join(self.overlays)]
        for name, value in self.ids.items():
            arguments += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
        return shlex.join(arguments)


class Planner:
    """Makes trials of a sweep; data sets are checked, and read for their digest, once each.

    Parameters
    ----------
    sweep : Sweep
        Of `read_sweep`.
    output_dir : path
        Of the sweep: trials go to ``trials/KEY`` in it.
    data : mapping
        Data set to its folder or file; ``""`` to a folder for all others.
    ids : mapping
        Overrides for all trials; ``weights`` only replaces ``"video"`` and ``"image"``.
    """

    def __init__(
        self,
        sweep: Sweep,
        output_dir: str | os.PathLike[str],
        *,
        data: Mapping[str, str | os.PathLike[str]],
        ids: Mapping[str, Any] | None = None,
    ) -> None:
        self.sweep = sweep
        self.folder = Path(output_dir).resolve()
        self.data = TrialData(sweep, self.folder, data)
        self._refuse_axes(ids or {})
        self.ids = {name: _absolute(value) if name in PLACES else value for name, value in (ids or {}).items()}
        self._weights = WeightDigests()
        self._evaluations: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._begun: list[str] = []
        self._pretrained: dict[str, Trial] = {}
        self._networks: dict[str, dict[str, Any]] = {}

    def _refuse_axes(self, ids: Mapping[str, Any]) -> None:
        """Refuse ids that would make all values of an axis the same while tables still name them apart."""
        for axis, values in self.sweep.axes.items():
            if axis in ids and any(axis in value.ids for value in values):
                raise InputError(
                    f"--{axis} {ids[axis]}: is an axis of {self.sweep.path}; choose with --only {axis}=VALUE"
                )

    def cells(self, only: Mapping[str, Sequence[str]] | None = None) -> list[dict[str, Value]]:
        """Return the cells of the grid, in order, but those that the sweep leaves out, or that are not asked for.

        Parameters
        ----------
        only : mapping, optional
            Axis to the names of its values that are wanted.

        Raises
        ------
        InputError
            For an axis or a value that there is not, or when nothing is left.
        """
        wanted = dict(only or {})
        for axis, names in wanted.items():
            there = [value.name for value in self.sweep.axes.get(axis, [])]
            if not there:
                raise InputError(f"{self.sweep.path}: no axis {axis!r}; there are {', '.join(self.sweep.axes)}")
            for name in names:
                if not any(_same(name, value) for value in there):
                    listed = ", ".join(map(str, there))
                    raise InputError(f"{self.sweep.path}: axis {axis} has no value {name!r}; there are {listed}")
        kept = [
            cell
            for cell in self._grid()
            if not any(_matches(cell, condition) for condition in self.sweep.leave_out) and _matches(cell, wanted)
        ]
        if not kept:
            raise InputError(f"{self.sweep.path}: no trial is left")
        return kept

    def _grid(self) -> Iterator[dict[str, Value]]:
        for values in product(*self.sweep.axes.values()):
            yield dict(zip(self.sweep.axes, (value.name for value in values), strict=True))

    def datasets(self, cells: Sequence[Cell]) -> list[str]:
        """Return the names of the data sets that some cells need, those of pre-training first."""
        names: list[str] = []
        for cell in cells:
            names += self._datasets_of(self._settings(cell))
        names += [str(cell[DATASET]) for cell in cells if DATASET in cell]
        return list(dict.fromkeys(names))

    def _datasets_of(self, settings: Sequence[Setting], seen: tuple[str, ...] = ()) -> list[str]:
        """Return the data sets of what these settings begin from, the earliest first."""
        names = []
        for name in self._pretraining_of(settings):
            if name not in seen:
                dataset, before = self.sweep.settings_of(name)
                names += [*self._datasets_of(before, (*seen, name)), *([] if dataset is None else [dataset])]
        return names

    def plan(self, cells: Sequence[Cell]) -> list[Trial]:
        """Return the trials of some cells, and first those whose weights they begin from.

        Raises
        ------
        InputError
            In one line, or one line per problem, for whatever would stop a trial before its first step: ids, overlays,
            data, weights; when two cells are the same trial.
        """
        by_key: dict[str, Trial] = {}
        for trial in [self.trial(cell, self._settings(cell)) for cell in cells]:
            other = by_key.setdefault(trial.key, trial)
            if other is not trial:
                raise InputError(
                    f"{self.sweep.path}: {named(other.cell)} and {named(trial.cell)} are the same trial; "
                    "an axis changes nothing there"
                )
        # One that is in the grid too is trained once, and is in the tables.
        first = {trial.key: by_key.get(trial.key, trial) for trial in self._pretrained.values()}
        return list((first | by_key).values())

    def trial(self, cell: Cell, settings: Sequence[Setting]) -> Trial:
        """Make a trial of a cell and the settings that it stands for, later ones going first."""
        bundle = next((setting.bundle for setting in reversed(settings) if setting.bundle), None)
        if bundle is None:
            raise InputError(f"{self.sweep.path}: no bundle for {named(cell)}")
        if PRETRAINED not in cell and has_workflow(bundle, "train") and not has_workflow(bundle, "evaluate"):
            raise InputError(f"{bundle}: scores nothing that a table could have; name it under {PRETRAINED!r}")
        overlays = tuple(str(overlay) for setting in settings for overlay in setting.overlays)
        ids = {name: value for setting in settings for name, value in setting.ids.items()}
        ids |= self._given(bundle, cell)
        place = self.data.place(cell, ids)
        if place is not None:
            ids["dataset_dir"] = str(place)
        before = self._pretraining_of(settings)
        if before:
            ids["weights"] = str(self._pretraining(before[0]).folder / "models" / "model.pt")
        parser = self._parser(bundle, overlays, ids, cell)
        if not before and "weights" in self.ids and parser.get("weights") in ("video", "image"):
            ids["weights"] = self.ids["weights"]
            parser = self._parser(bundle, overlays, ids, cell)
        configuration = copy.deepcopy(parser.get())  # as it is before references are resolved
        for name, value in {"cache_dir": str(self.folder / "cache"), "progress": False}.items():
            if name in parser:
                ids.setdefault(name, value)
        counts, data = self.data.counted(cell, parser)
        with about(cell):
            weights = (
                f"trial {self._pretraining(before[0]).key}"
                if before
                else self._weights.of(parser.get_parsed_content("backbone"), parser.get("weights"))
            )
            fraction = parser.get_parsed_content("label_fraction") if "label_fraction" in parser else 1.0
            labelled_subset([], fraction)
            look_up_backbone(parser.get_parsed_content("backbone"))
            network = network_of(parser)
            if before:
                refuse_other_network(network, self._networks[self._pretraining(before[0]).key], before[0])
            epochs = parser.get_parsed_content("max_epochs")
            if not isinstance(epochs, int) or epochs < 1:
                raise InputError(f"max_epochs: {epochs!r} is not a whole number of 1 or more")
        evaluation = self._evaluation(bundle, overlays)
        key = trial_key(bundle, configuration, evaluation, data=data, weights=weights)
        self._networks[key] = network
        labelled = counts["training"] * fraction
        return Trial(
            key=key,
            cell=dict(cell),
            folder=self.folder / "trials" / key,
            bundle=str(bundle),
            overlays=overlays,
            ids=ids,
            max_epochs=epochs,
            volumes=labelled + counts["validation"] / 3,
            after=(self._pretraining(before[0]).key,) if before else (),
        )

    def _given(self, bundle: Path, cell: Cell) -> dict[str, Any]:
        """Return the ids that are given for all trials; what the bundle of a pre-training has not is passed over."""
        given = {name: value for name, value in self.ids.items() if name != "weights"}
        if PRETRAINED not in cell or not given:
            return given
        parser = self._parser(bundle, (), {}, cell)
        return {name: value for name, value in given.items() if name in parser}

    def changed(self, cell: Cell, ids: Mapping[str, Any]) -> Trial:
        """Make the trial of a cell with further ids, which go before those of the sweep."""
        return self.trial(cell, [*self._settings(cell), Setting("", ids=dict(ids))])

    def _settings(self, cell: Cell) -> list[Setting]:
        chosen = [
            next(value for value in values if _same(str(cell[axis]), value.name))
            for axis, values in self.sweep.axes.items()
        ]
        return [self.sweep.base, *chosen]

    def _parser(self, bundle: Path, overlays: Sequence[str], ids: Mapping[str, Any], cell: Cell) -> ConfigParser:
        with about(cell):
            return load_workflow(bundle, "train", overlays=overlays, overrides=ids).parser

    def _evaluation(self, bundle: Path, overlays: tuple[str, ...]) -> dict[str, Any]:
        """Return the configuration that a bundle is evaluated with; nothing where it has no evaluation."""
        if not has_workflow(bundle, "evaluate"):
            return {}
        if (bundle, overlays) not in self._evaluations:
            parser = load_workflow(bundle, "evaluate", overlays=overlays).parser
            self._evaluations[bundle, overlays] = copy.deepcopy(parser.get())
        return self._evaluations[bundle, overlays]

    def _pretraining_of(self, settings: Sequence[Setting]) -> list[str]:
        """Return the name of the pre-training whose weights these settings ask for, if any."""
        wanted = [setting.ids["weights"] for setting in settings if "weights" in setting.ids][-1:]
        names = [str(value).partition(":")[2] for value in wanted if str(value).startswith(f"{PRETRAINED}:")]
        for name in names:
            if name not in self.sweep.pretrained:
                there = ", ".join(self.sweep.pretrained) or "none"
                raise InputError(f"{self.sweep.path}: no pre-training {name!r}; there are {there}")
        return names

    def _pretraining(self, name: str) -> Trial:
        if name not in self._pretrained:
            if name in self._begun:
                raise InputError(f"{self.sweep.path}: pre-training {name!r} begins from itself")
            self._begun.append(name)
            dataset, settings = self.sweep.settings_of(name)
            cell = {PRETRAINED: name} if dataset is None else {PRETRAINED: name, DATASET: dataset}
            self._pretrained[name] = self.trial(cell, settings)
        return self._pretrained[name]


def _same(text: str, value: Value) -> bool:
    """Whether a name from the command line is this value: 1 and 1.0 are."""
    if str(value) == str(text):
        return True
    try:
        return not isinstance(value, str) and float(text) == float(value)
    except ValueError:
        return False


def _absolute(value: Any) -> Any:
    """Make a path that exists independent of the working directory; "video" and the like are no paths."""
    is_path = isinstance(value, str) and value not in ("", *KINDS) and Path(value).exists()
    return str(Path(value).resolve()) if is_path else value


def _matches(cell: Cell, condition: Mapping[str, Any]) -> bool:
    for axis, wanted in condition.items():
        values = wanted if isinstance(wanted, (list, tuple)) else [wanted]
        if not any(_same(str(value), cell[axis]) for value in values):
            return False
    return True
