"""A run as a MONAI bundle of its own: one folder or zip with recipe, weights, model card and checksums."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from cryo_monai.errors import CryoMonaiError, InputError
from cryo_monai.fetching import sha256_of
from cryo_monai.files import TEMPORARY
from cryo_monai.model_cards import write_model_card
from cryo_monai.packaged_recipes import merge_recipe, portable_initialisation, without_places
from cryo_monai.run_evaluation import evaluation_of
from cryo_monai.runs import read_json, read_run
from cryo_monai.trusts import trust, write_sums

METRICS = ("accuracy", "auc", "balanced_accuracy", "macro_f1")
_AS_THEY_ARE = ("LICENSE", "configs/logging.conf")
_VERSION = re.compile(r"\d+\.\d+\.\d+([.-]?[a-z]+\d*)?")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Release:
    """What a package says of itself beyond what was measured.

    Attributes
    ----------
    version : str
        Of the bundle, such as ``1.0.0``.
    authors : str
        Who made the model; the bundle's by default, as the others below.
    title, description, intended_use, data_source, data_license : str
        Plain sentences.
    weights_url : str
        Where ``models/model.pt`` will be downloadable; then the package has a ``large_files.yml``, as the MONAI model
        zoo wants.
    """

    version: str = "1.0.0"
    authors: str = ""
    title: str = ""
    description: str = ""
    intended_use: str = ""
    data_source: str = ""
    data_license: str = ""
    weights_url: str = ""


def package_run(
    run_dir: str | os.PathLike[str], target: str | os.PathLike[str], release: Release | None = None
) -> Path:
    """Write a run as a MONAI bundle that needs nothing but this package installed.

    Its configurations are the bundle's with the run's overlays and ids merged in, and paths below ``bundle_root``; the
    test split is scored if it was not. It is a run folder too, for all that needs no training data.

    Parameters
    ----------
    run_dir : path
        A finished run.
    target : path
        ``NAME.zip`` or a folder ``NAME``; not there yet. The name becomes the bundle's.
    release : Release, optional
        Version, authors and descriptions.

    Returns
    -------
    Path
        The target.

    Raises
    ------
    CryoMonaiError
        In one line: the run is not finished, its data are gone before it was scored, the target exists, its name is not
        one for a bundle, or the recipe names files of this machine.
    """
    release = release or Release()
    target = Path(target)
    name = _bundle_name(target)
    if not _VERSION.fullmatch(release.version):
        raise InputError(f"--version {release.version}: give three numbers, such as 1.0.0")
    if release.weights_url and not release.weights_url.startswith(("https://", "http://")):
        raise InputError(f"--weights_url {release.weights_url}: give an address that begins with https://")
    folder, record = read_run(run_dir)
    weights = folder / "models" / "model.pt"
    if not weights.is_file():
        raise InputError(f"{folder}: has no models/model.pt; finish the training")
    absent = [name for name in _AS_THEY_ARE if not (Path(record["bundle"]) / name).is_file()]
    if absent:
        raise InputError(f"{record['bundle']}: the bundle has no {absent[0]}")
    recipe = merge_recipe(folder, record)
    evaluation = evaluation_of(folder)
    metadata = _metadata(record, evaluation, name, release, weights)
    staging = target.with_name(f"{target.name}.{secrets.token_hex(6)}{TEMPORARY}")
    bundle = staging / name
    try:
        _write_bundle(bundle, Path(record["bundle"]), recipe, metadata)
        shutil.copyfile(weights, bundle / "models" / "model.pt")
        write_model_card(bundle, metadata, evaluation, record)
        _write_data_license(bundle, metadata["data_source"], release.data_license)
        if release.weights_url:
            _write_large_files(bundle, release.weights_url)
        _write_record(bundle, record)
        shutil.copyfile(folder / "evaluation.json", bundle / "evaluation.json")
        write_sums(bundle)
        trust(bundle)
        if target.suffix == ".zip":
            archive = zip_folder(bundle, staging / target.name)
            os.replace(archive, target)
        else:
            os.replace(bundle, target)
    except OSError as error:
        raise CryoMonaiError(f"{target}: cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _bundle_name(target: Path) -> str:
    name = target.name.removesuffix(".zip")
    if not _NAME.fullmatch(name):
        raise InputError(f"{target}: {name!r} is no name for a bundle; a letter first, then letters, digits, _ and -")
    if target.exists():
        raise InputError(f"{target}: is there already; choose another name")
    return name


def _metadata(
    record: Mapping[str, Any], evaluation: Mapping[str, Any], name: str, release: Release, weights: Path
) -> dict[str, Any]:
    """Describe the packaged network: the bundle's metadata, with what was measured."""
    metadata = read_json(Path(record["bundle"]) / "configs" / "metadata.json")
    classes = list(evaluation["per_class"])
    given = {key: getattr(release, key) for key in ("authors", "description", "intended_use", "data_source")}
    metadata |= {key: value for key, value in given.items() if value}
    if release.authors:
        metadata["copyright"] = f"Copyright (c) {release.authors}"
    metadata |= {
        "version": release.version,
        "changelog": {release.version: f"packaged by cryo-monai {version_of('cryo-monai')}"},
        "name": release.title or f"{metadata['name']}: {name}",
        "monai_version": version_of("monai"),
        "pytorch_version": version_of("torch").split("+")[0],
        "numpy_version": version_of("numpy"),
        "required_packages_version": _installed(metadata["required_packages_version"]),
        "label_classes": ", ".join(f"{number}: {label}" for number, label in enumerate(classes)),
        "eval_metrics": {metric: evaluation[metric] for metric in METRICS},
        "evaluation": {
            "split": evaluation["split"],
            "num_volumes": evaluation["num_volumes"],
            "intervals": {metric: evaluation["intervals"][metric] for metric in METRICS},
            "level": evaluation["intervals"]["level"],
            "chance": evaluation["chance"],
            "temperature": evaluation["temperature"],
        },
        "training_data": without_places(record.get("data", {})),
        "initialisation": portable_initialisation(record),
        "weights_sha256": sha256_of(weights),
    }
    output = metadata["network_data_format"]["outputs"]["pred"]
    output["num_channels"] = len(classes)
    output["channel_def"] = {str(number): label for number, label in enumerate(classes)}
    return metadata


def _installed(packages: Iterable[str]) -> dict[str, str]:
    try:
        return {package: version_of(package) for package in packages}
    except PackageNotFoundError as error:
        raise InputError(f"the bundle's metadata.json requires {error.name}, which is not installed") from None


def _write_bundle(
    bundle: Path, source: Path, recipe: Mapping[str, Mapping[str, Any]], metadata: Mapping[str, Any]
) -> None:
    for part in ("configs", "docs", "models"):
        (bundle / part).mkdir(parents=True)
    for name, configuration in {**recipe, "metadata.json": metadata}.items():
        (bundle / "configs" / name).write_text(json.dumps(configuration, indent=4, ensure_ascii=False) + "\n")
    for name in _AS_THEY_ARE:
        shutil.copyfile(source / name, bundle / name)
    if (source / "scripts").is_dir():
        shutil.copytree(source / "scripts", bundle / "scripts", ignore=shutil.ignore_patterns("__pycache__"))


def _write_data_license(bundle: Path, source: str, terms: str) -> None:
    terms = terms or "Not stated by who packaged this network; ask them before you pass it on."
    text = f"Trained on: {source}\nLicence of these data: {terms}\nThis bundle has the weights, and none of the data.\n"
    (bundle / "docs" / "data_license.txt").write_text(text)


def _write_large_files(bundle: Path, url: str) -> None:
    weights = bundle / "models" / "model.pt"
    lines = ["large_files:", '- path: "models/model.pt"', f'  url: "{url}"']
    lines += [f'  hash_val: "{sha256_of(weights)}"', '  hash_type: "sha256"']
    (bundle / "large_files.yml").write_text("\n".join(lines) + "\n")


def _write_record(bundle: Path, record: Mapping[str, Any]) -> None:
    """Make the package a run folder, of which `read_run` knows that the bundle is the folder itself."""
    portable = {"bundle": ".", "overlays": [], "ids": {}, "tracking": "", "command": []}
    portable |= {"initialisation": portable_initialisation(record), "data": without_places(record.get("data", {}))}
    (bundle / "run.json").write_text(json.dumps(portable, indent=1) + "\n")


def zip_folder(folder: Path, target: Path) -> Path:
    """Zip a folder with its name; the same files give the same bytes."""
    with zipfile.ZipFile(target, "w", compression=zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                entry = zipfile.ZipInfo(f"{folder.name}/{file.relative_to(folder).as_posix()}", (1980, 1, 1, 0, 0, 0))
                entry.external_attr = 0o644 << 16
                entry.compress_type = zipfile.ZIP_STORED if file.suffix == ".pt" else zipfile.ZIP_DEFLATED
                with file.open("rb") as stream, archive.open(entry, "w", force_zip64=True) as packed:
                    shutil.copyfileobj(stream, packed)
    return target
