"""A run folder: what was trained, with which configuration, and how it scored."""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.bundle import ConfigParser, ConfigWorkflow

from cryo_monai.datasets import describe_volumes, extraction_of
from cryo_monai.errors import InputError, unwrapped_errors
from cryo_monai.files import atomic_write_text
from cryo_monai.folders import LOCK, locked
from cryo_monai.parallel import is_first, one_voice
from cryo_monai.splits import SPLITS
from cryo_monai.tracking import add_tracking
from cryo_monai.trusts import SUMS, require_trust
from cryo_monai.weight_records import KINDS
from cryo_monai.workflows import flattened, load_workflow

Paths = Sequence[str | os.PathLike[str]]
CONFIGURATION = "configuration.json"
PLACES = ("dataset_dir", "weights")  # ids that name files, kept as absolute paths
# Ids that do not change what a training computes.
HOW = ("device", "num_workers", "cache_device", "cache_dir", "save_execute_config", "download")
# Ids that differ between a run and its continuation without making it another.
CIRCUMSTANCES = ("resume", "bundle_root", "output_dir", "ckpt_dir", "cache_dir", "progress", "_meta_", "run_name")


def train_bundle(
    bundle: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    overlays: Paths = (),
    resume: bool = False,
    tracking: str = "",
    ids: Mapping[str, Any] | None = None,
) -> None:
    """Train a bundle into a run folder and note there how, for `evaluate_run` and `classify_with_run`.

    ``run.json`` has the command, weights and data, and what was changed whenever the run was resumed;
    ``configuration.json`` the recipe with all overlays and ids, as ``monai.bundle run`` takes it.

    Parameters
    ----------
    bundle : path
        Bundle folder.
    output_dir : path
        Run folder; checkpoints go to ``models/`` in it.
    overlays : sequence of path
        See `load_workflow`.
    resume : bool
        Go on with the run in this folder; what it was started with need not be given again.
    tracking : str
        ``"mlflow"`` tracks the run; see `add_tracking`.
    ids : mapping, optional
        Overrides; see `load_workflow`.

    Raises
    ------
    CryoMonaiError
        One line for anything the user can mend.
    """
    with one_voice(), running(output_dir) if is_first() else nullcontext():
        train_held(bundle, Path(output_dir), overlays=overlays, resume=resume, tracking=tracking, ids=ids or {})


@contextmanager
def running(run_dir: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a run folder for this process.

    Raises
    ------
    LockedError
        When another process trains in it, naming that.
    """
    folder = Path(run_dir)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; give a folder")
    with locked(folder / LOCK, f"{folder}: another process trains there"):
        yield


def train_held(
    bundle: str | os.PathLike[str],
    folder: Path,
    *,
    overlays: Paths,
    resume: bool,
    tracking: str,
    ids: Mapping[str, Any],
    inherit: bool = True,
) -> None:
    """Train in a folder that is held; see `train_bundle`. Without ``inherit`` a resumed run takes nothing over."""
    given = {name: _absolute(value) if name in PLACES else value for name, value in ids.items()}
    overlays = [str(Path(overlay).resolve()) for overlay in overlays]
    resumed: list[dict[str, Any]] = []
    command = sys.argv
    if (folder / SUMS).exists():
        raise InputError(f"{folder}: a package, which stays as it is; choose another output_dir")
    if has_state(folder) and not resume:
        raise InputError(f"{folder}: holds a run; add --resume to go on with it, or choose another output_dir")
    if resume:
        if not has_state(folder):
            raise InputError(f"{folder}: nothing to resume there; start without --resume")
        _, before = read_run(folder)
        if inherit:
            given = {**before["ids"], **given}
            overlays = overlays or before["overlays"]
        resumed, command = before.get("resumed", []), before["command"]
        tracking = tracking or before.get("tracking", "")
    overrides = {**given, **locations(folder), "resume": resume}
    workflow = load_workflow(bundle, "train", overlays=overlays, overrides=overrides)
    configuration = copy.deepcopy(workflow.parser.get())
    if tracking and is_first():
        add_tracking(workflow, tracking, experiment=Path(bundle).resolve().name, run=folder.resolve().name)
    changed = changes(folder, configuration) if resume else {}
    record: dict[str, Any] = {
        "bundle": str(Path(bundle).resolve()),
        "overlays": overlays,
        "ids": given,
        "tracking": tracking,
        "command": command,
    }

    def note(engine: Engine) -> None:
        if not is_first():
            return
        record["initialisation"] = workflow.parser.get_parsed_content("network").initialisation
        record["data"] = described_data(workflow.parser)
        if resume:
            now = {"after_epoch": engine.state.epoch, "command": sys.argv, "changed": changed}
            record["resumed"] = [*resumed, now]
        atomic_write_text(folder / CONFIGURATION, json.dumps(configuration, indent=1) + "\n")
        atomic_write_text(folder / "run.json", json.dumps(record, indent=1) + "\n")

    with unwrapped_errors():
        workflow.initialize()
        # Noted once data and checkpoint are found good, so that a refused call leaves an earlier run as it was.
        workflow.parser.get_parsed_content("train#trainer").add_event_handler(Events.STARTED, note)
        workflow.run()
        workflow.finalize()


def described_data(parser: ConfigParser) -> dict[str, Any]:
    """Note what a run is trained on: volumes of files, or, where a bundle has no ``datalist``, what it generates."""
    dataset = parser.get_parsed_content("train#dataset")
    if "datalist" not in parser:
        return {"generated": dataset.description()}
    cut = extraction_of(parser.get_parsed_content("dataset_dir"))
    lists = parser.get_parsed_content("datalist")
    counts = {split: len(lists[split]) for split in SPLITS}
    return {**describe_volumes(dataset), "extraction": cut, "num_volumes": counts}


def configuration_of(run_dir: str | os.PathLike[str], kind: str = "evaluate") -> ConfigWorkflow:
    """Compose a run's bundle again, with its overlays and ids, and initialise it; see `load_workflow`."""
    folder, record = read_run(run_dir)
    overrides = {**record["ids"], **locations(folder)}
    workflow = load_workflow(record["bundle"], kind, overlays=record["overlays"], overrides=overrides)
    with unwrapped_errors():
        workflow.initialize()
    return workflow


def find_data_again(run_dir: str | os.PathLike[str], dataset_dir: str | os.PathLike[str]) -> None:
    """Note in ``run.json`` where the data of a run are now, after they were moved.

    Raises
    ------
    InputError
        When the folder is not a run, or a package, or there is nothing at that place.
    """
    folder, record = read_run(run_dir)
    if (folder / SUMS).exists():
        raise InputError(f"{folder}: a package, which stays as it is; its data are not part of it")
    if not Path(dataset_dir).exists():
        raise InputError(f"{dataset_dir}: no such file or folder")
    record["ids"]["dataset_dir"] = str(Path(dataset_dir).resolve())
    atomic_write_text(folder / "run.json", json.dumps(record, indent=1) + "\n")


def has_state(run_dir: str | os.PathLike[str]) -> bool:
    """Whether there is a training to resume in a run folder."""
    models = Path(run_dir) / "models"
    return (models / "last.pt").exists() or (models / "previous.pt").exists()


def _absolute(value: Any) -> Any:
    """Make a path that exists independent of the working directory; "video" and the like are no paths."""
    is_path = isinstance(value, str) and value not in ("", *KINDS) and Path(value).exists()
    return str(Path(value).resolve()) if is_path else value


def changes(folder: Path, configuration: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return ids that differ from those that a run was last trained with: old and new value."""
    if not (folder / CONFIGURATION).is_file():  # of a version that did not keep it
        return {}
    before, now = (dict(flattened(config)) for config in (read_json(folder / CONFIGURATION), configuration))
    names = [name for name in before | now if name.split("#")[0] not in CIRCUMSTANCES]
    # Compared as JSON, which knows no tuples.
    pairs = {name: [before.get(name), json.loads(json.dumps(now.get(name)))] for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def refuse_changes(bundle: str | os.PathLike[str], folder: Path, *, overlays: Paths, ids: Mapping[str, Any]) -> None:
    """Refuse a request that is not what a run was trained with, but for places and how it is computed.

    Raises
    ------
    InputError
        Naming what differs.
    """
    parser = load_workflow(bundle, "train", overlays=overlays, overrides={**ids, **locations(folder)}).parser
    found = {n: pair for n, pair in changes(folder, parser.get()).items() if n.split("#")[0] not in (*PLACES, *HOW)}
    if found:
        pairs = list(found.items())[:3]
        listed = ", ".join(f"{name} {shortened(old)}, not {shortened(new)}" for name, (old, new) in pairs)
        raise InputError(f"{folder}: is done, with {listed}; give another folder")


def shortened(value: Any, length: int = 60) -> str:
    """Write a value of a configuration for a message; long ones end in an ellipsis."""
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."


def locations(folder: Path) -> dict[str, str]:
    """Ids that say where a run writes."""
    return {"output_dir": str(folder), "ckpt_dir": str(folder / "models")}


def read_run(run_dir: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]]:
    """Return a run folder and the record of how it was made.

    Raises
    ------
    InputError
        When it is not a run folder, or a package that is not whole or not trusted.
    """
    folder = Path(run_dir)
    if not (folder / "run.json").is_file():
        raise InputError(f"{folder}: not a run folder (no run.json); give the output_dir of `cryo-monai train`")
    is_package = (folder / SUMS).exists()
    if is_package:
        require_trust(folder)
    record = read_json(folder / "run.json")
    if is_package != (record["bundle"] == "."):
        raise InputError(f"{folder}: not as it was packaged: run.json and {SUMS} do not belong together")
    if is_package:
        return folder, {**record, "bundle": str(folder.resolve())}
    bundle = Path(record["bundle"])
    if not bundle.is_absolute() or folder.resolve() in (bundle.resolve(), *bundle.resolve().parents):
        raise InputError(
            f"{folder}: run.json has a bundle of its own ({bundle}), as no run made by `cryo-monai train` has"
        )
    return folder, record


def read_json(file: Path) -> dict[str, Any]:
    """Read an object of a run folder.

    Raises
    ------
    InputError
        When it is not readable.
    """
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not readable ({error})") from error
    return content
