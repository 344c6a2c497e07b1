"""What the commands of the documentation take as given, at a small size: a user's volumes, tomograms, runs, models."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gemmi
import mrcfile
import numpy as np
import pytest
import torch
from atomic_models import protein_text
from conftest import TINY
from documented_pages import ROOT
from references import build_reference, save_as_published

from cryo_monai.__main__ import main
from cryo_monai.simulation import SimulationSettings, write_dataset, write_tomograms
from cryo_monai.weight_records import RECORDS

Maker = Callable[[Path], None]
SIZES = SimulationSettings(mode="xulab", box=16, voxel_size=20.0, resolution=40.0, snr=2.0, max_shift=1.0, neighbours=0)
ASSEMBLIES = ("c2_64kda", "c7_400kda", "o_440kda", "d2_140kda", "d3_290kda", "t_200kda")
MDOC = "".join(f"[ZValue = {n}]\nTiltAngle = {20 * n - 60}\nExposureDose = 3\n" for n in range(7))


def flags_for(ids: dict[str, object]) -> list[str]:
    """Ids as words of a command."""
    texts = {name: "None" if value is None else json.dumps(value).strip('"') for name, value in ids.items()}
    return [word for name, text in texts.items() for word in (f"--{name}", text)]


class Inputs:
    """Makes inputs by the names that the documentation gives them; those that take long, once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.makers: dict[str, Maker] = {
            "particles": partial(self._classes, count=3),
            "DATA": self._simulated,
            "data": self._simulated,
            "tutorial/boxes": partial(self._classes, count=6),
            "new_particles": self._volumes,
            "FOLDER_OF_VOLUMES": self._volumes,
            "tomograms": self._tomograms,
            "labelled.star": self._labelled,
            "picks/picks.star": self._labelled,
            "runs/quick": lambda place: _copy(ROOT / "benchmarks" / "results" / "quick_sweep", place),
            "resnet-34-kinetics-cpu.pth": self._weights,
            "some_file.pth": self._weights,
            "MODELS": partial(_models, suffix=".pdb.gz"),
            "my_model.cif.gz": lambda place: _write_gzip(place, _cif("mine")),
            "map.mrc": _map,
            "series.mdoc": lambda place: _write(place, MDOC.encode()),
        }
        self.makers |= {f"runs/{name}": self._run for name in ("mine", "a", "b", "random", "video", "quickstart")}

    def provide(self, value: str, place: Path) -> None:
        """Make what an argument names, unless it is there."""
        for part in value.split(","):
            path = part.rpartition("=")[2].removeprefix("./")
            for name, make in self.makers.items():
                if f"{path}/".startswith(f"{name}/") and not (place / name).exists():
                    (place / name).parent.mkdir(parents=True, exist_ok=True)
                    make(place / name)

    def medmnist(self, place: Path) -> None:
        """The official files, where they are; that there is a download is not tried."""
        official = Path(os.environ.get("CRYO_MONAI_DATA", "nowhere")) / "medmnist3d"
        if not official.is_dir():
            pytest.skip("CRYO_MONAI_DATA has no medmnist3d")
        if not place.exists():
            place.symlink_to(official, target_is_directory=True)

    def fill_cache(self, cache: Path) -> None:
        """Put into the cache what the Protein Data Bank would send for the entries that presets name, but smaller."""
        for name in _entries():
            file = cache / "structures" / f"{name}.cif.gz"
            _write_gzip(file, _cif(name))
            sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
            _write(file.with_name(f"{name}.json"), json.dumps({"sha256": sha256}).encode())

    def _once(self, name: str, make: Maker) -> Path:
        if not (self.folder / name).exists():
            make(self.folder / name)
        return self.folder / name

    def _classes(self, place: Path, count: int) -> None:
        """A folder per class."""
        for name in ASSEMBLIES[:count]:
            _copy(self._once("dataset", _dataset) / name, place / name)

    def _simulated(self, place: Path) -> None:
        write_dataset(place, SIZES, num_per_class=4, clean=False)

    def _volumes(self, place: Path) -> None:
        _copy(self._once("dataset", _dataset) / ASSEMBLIES[0], place)

    def _tomograms(self, place: Path) -> None:
        place.mkdir()
        for file in self._once("tomograms", _tomograms).glob("tomogram_???.mrc"):
            shutil.copy(file, place)

    def _labelled(self, place: Path) -> None:
        shutil.copy(self._once("tomograms", _tomograms) / "particles.star", place)

    def _run(self, place: Path) -> None:
        def train(folder: Path) -> None:
            data = folder.with_name("particles")
            self._classes(data, 3)
            bundle = str(ROOT / "bundles" / "subtomogram_classification")
            ids = flags_for({**TINY, "dataset_dir": str(data), "num_classes": 3})
            assert main(["train", bundle, str(folder), "--report", "False", *ids]) == 0

        _copy(self._once("run", train), place)

    def _weights(self, place: Path) -> None:
        def save(file: Path) -> None:
            record = next(record for record in RECORDS if record.backbone == "resnet18")
            with torch.random.fork_rng():
                save_as_published(record, build_reference(record)[0], file)

        os.link(self._once("weights.pth", save), place)


def _copy(source: Path, place: Path) -> None:
    shutil.copytree(source, place)


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def _write_gzip(file: Path, text: str) -> None:
    _write(file, gzip.compress(text.encode()))


def _dataset(place: Path) -> None:
    write_dataset(place, SIZES, num_per_class=10, structures=ASSEMBLIES, clean=False)


def _tomograms(place: Path) -> None:
    settings = SimulationSettings(voxel_size=10.0, resolution=20.0, snr=1.0, tilt_step_deg=20.0)
    write_tomograms(place, settings, num_tomograms=3, size=(48, 128, 128), num_particles=15, structures=ASSEMBLIES[:3])


def _entries() -> list[str]:
    """PDB entries that the documentation and the presets name."""
    presets = [json.loads(file.read_text()) for file in sorted((ROOT / "configs" / "simulation").glob("*.json"))]
    named = [name for preset in presets for name in preset.get("structures", []) if isinstance(name, str)]
    return sorted({"1bxn", *(name for name in named if len(name) == 4)})


def _pdb(name: str) -> str:
    """A small protein that differs from name to name."""
    return protein_text(count=60 + sum(map(ord, name)) % 50, water=False)


def _cif(name: str) -> str:
    structure = gemmi.read_pdb_string(_pdb(name))
    structure.setup_entities()
    return structure.make_mmcif_document().as_string()


def _models(place: Path, suffix: str) -> None:
    for name in _entries():
        _write_gzip(place / f"{name}{suffix}", _pdb(name))


def _map(place: Path) -> None:
    grid = np.indices((20, 20, 20)) - 9.5
    with mrcfile.new(place) as file:
        file.set_data(np.exp(-(grid**2).sum(0) / 20).astype(np.float32))
        file.voxel_size = 5.0
