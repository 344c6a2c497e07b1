"""Sweep files: JSON that names a bundle, and axes whose values are overlays and ids."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from cryo_monai.errors import InputError
from cryo_monai.files import atomic_write_text
from cryo_monai.runs import PLACES
from cryo_monai.sweeps.outcomes import Value
from cryo_monai.weight_records import KINDS

KEYS = (
    "title",
    "bundle",
    "overlays",
    "ids",
    "axes",
    "leave_out",
    "data",
    "pretrained",
    "search",
    "compare",
    "baseline",
    "published",
    "layout",
)
_SETTING_KEYS = ("bundle", "overlays", "ids")


@dataclass(frozen=True)
class Setting:
    """What a value of an axis changes.

    Attributes
    ----------
    name : str or number
        Of the value; the value itself where the axis is an id.
    bundle : Path or None
        Another bundle.
    overlays : tuple of Path
        Overlays, after those of earlier axes.
    ids : dict
        Ids, after those of earlier axes.
    """

    name: Value
    bundle: Path | None = None
    overlays: tuple[Path, ...] = ()
    ids: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sweep:
    """A sweep file, with its paths made absolute.

    Attributes
    ----------
    path : Path
        The file.
    base : Setting
        What all trials share.
    axes : dict
        Axis to its values, in order.
    leave_out : tuple of dict
        Cells that match one of these (axis to value or list of values) are not run.
    data : dict
        Data set to how it is simulated: the arguments of ``cryo-monai simulate``.
    pretrained : dict
        Name to a training whose best weights trials may begin from, as ``"weights": "pretrained:NAME"``: its data set
        and its setting. One with a bundle of its own takes nothing over from ``base``, and has no data set when it
        names none: such a bundle generates what it trains on.
    content : dict
        The JSON, for those who read tables' titles and published numbers from it.
    """

    path: Path
    base: Setting
    axes: dict[str, list[Setting]]
    leave_out: tuple[dict[str, Any], ...]
    data: dict[str, dict[str, Any]]
    pretrained: dict[str, tuple[str | None, Setting]]
    content: dict[str, Any]

    def settings_of(self, name: str) -> tuple[str | None, list[Setting]]:
        """Return the data set of a pre-training, if it has one, and what it is set to, later ones going first."""
        dataset, setting = self.pretrained[name]
        return dataset, [setting] if setting.bundle else [self.base, setting]

    def described(self) -> dict[str, Any]:
        """Return the JSON with ``axes`` as lists of names, which is what tables and pages are made of."""
        return {**self.content, "axes": {axis: [value.name for value in values] for axis, values in self.axes.items()}}


def read_sweep(path: str | os.PathLike[str]) -> Sweep:
    """Read a sweep file; docs/sweeps.md says what may be in it.

    Raises
    ------
    InputError
        In one line naming the file and the key: unreadable JSON, unknown keys, axes without values, overlays or bundles
        that are not there.
    """
    file = Path(path)
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not a readable sweep ({getattr(error, 'strerror', None) or error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("axes"), dict) or not content["axes"]:
        raise InputError(f"{file}: a sweep is a JSON object with 'axes'")
    _refuse_unknown(file, "", [key for key in content if not key.startswith("_")], KEYS)
    if "pretrained" in content["axes"]:
        raise InputError(f"{file}: axes: 'pretrained' is what trainings that others begin from are called; rename it")
    reader = _Reader(file)
    axes = {axis: reader.axis(axis, values) for axis, values in content["axes"].items()}
    _check_comparison(file, content, axes)
    base = reader.setting("", "", {key: content[key] for key in _SETTING_KEYS if key in content})
    return Sweep(
        path=file,
        base=base,
        axes=axes,
        leave_out=tuple(reader.conditions(content.get("leave_out", []), axes)),
        data=reader.objects("data", content.get("data", {})),
        pretrained=reader.pretrained(content.get("pretrained", {})),
        content=content,
    )


def note_sweep(folder: Path, sweep: Sweep) -> None:
    """Write ``sweep.json``, the mark of a sweep's folder: the sweep as it was last run there.

    Raises
    ------
    InputError
        When the folder holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; give a folder")
    note = folder / "sweep.json"
    if folder.is_dir() and not note.is_file():
        others = sorted(entry.name for entry in folder.iterdir())
        if others:
            raise InputError(f"{folder}: not empty and not a sweep ({others[0]}); choose another --output_dir")
    atomic_write_text(note, json.dumps(sweep.described(), indent=1) + "\n")


class _Reader:
    """Reads parts of a sweep file, and says which of them is wrong."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def path(self, place: str, value: Any) -> Path:
        if not isinstance(value, str):
            raise InputError(f"{self.file}: {place}: {value!r} is not a path")
        found = Path(os.path.normpath(self.file.parent.resolve() / value))
        if not found.exists():
            raise InputError(f"{self.file}: {place}: {found}: no such file or folder")
        return found

    def beside(self, value: Any) -> Any:
        """Make a path absolute that exists beside the file; "video" and the like are no paths."""
        is_path = isinstance(value, str) and value not in ("", *KINDS)
        found = self.file.parent.resolve() / value if is_path else None
        return str(found) if found is not None and found.exists() else value

    def axis(self, axis: str, values: Any) -> list[Setting]:
        if isinstance(values, list) and values and all(_is_value(value) for value in values):
            settings = [Setting(value, ids={axis: value}) for value in values]
        elif isinstance(values, dict) and values:
            settings = [self.setting(axis, name, value) for name, value in values.items()]
        else:
            raise InputError(f"{self.file}: axes: {axis}: give a list of values of this id, or an object of named ones")
        names = [setting.name for setting in settings]
        if len(set(map(str, names))) < len(names):
            raise InputError(f"{self.file}: axes: {axis}: a value comes twice")
        return settings

    def setting(self, axis: str, name: str, value: Any) -> Setting:
        place = f"axes: {axis}: {name}" if axis else "sweep"
        if not isinstance(value, dict):
            raise InputError(f"{self.file}: {place}: give an object with {', '.join(_SETTING_KEYS)}")
        _refuse_unknown(self.file, f"{place}: ", [key for key in value if not key.startswith("_")], _SETTING_KEYS)
        overlays, ids = value.get("overlays", []), value.get("ids", {})
        if not isinstance(overlays, list):
            raise InputError(f"{self.file}: {place}: 'overlays' is not a list")
        if not isinstance(ids, dict):
            raise InputError(f"{self.file}: {place}: 'ids' is not an object")
        return Setting(
            name=ids[axis] if _is_value(ids.get(axis)) else name,
            bundle=self.path(place, value["bundle"]) if "bundle" in value else None,
            overlays=tuple(self.path(place, overlay) for overlay in overlays),
            ids={name: self.beside(value) if name in PLACES else value for name, value in ids.items()},
        )

    def conditions(self, content: Any, axes: Mapping[str, Sequence[Setting]]) -> list[dict[str, Any]]:
        if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
            raise InputError(f"{self.file}: 'leave_out' is not a list of objects")
        for entry in content:
            _refuse_unknown(self.file, "leave_out: ", list(entry), tuple(axes))
        return content

    def objects(self, key: str, content: Any) -> dict[str, dict[str, Any]]:
        if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
            raise InputError(f"{self.file}: {key!r} is not an object of objects")
        return {
            name: {option: self.option(f"{key}: {name}", option, value) for option, value in entry.items()}
            for name, entry in content.items()
        }

    def option(self, place: str, option: str, value: Any) -> Any:
        """Read an option of a verb as the command line would give it."""
        if option == "output_dir":
            raise InputError(f"{self.file}: {place}: 'output_dir' is the sweep's to choose")
        if option in ("config", "structure_dir"):
            return str(self.path(place, value))
        if isinstance(value, list):
            value = ",".join(map(str, value))
        if not isinstance(value, (str, int, float)):
            raise InputError(f"{self.file}: {place}: {option}: give a text or a number")
        return value if isinstance(value, bool) or option == "num_per_class" else str(value)

    def pretrained(self, content: Any) -> dict[str, tuple[str | None, Setting]]:
        if not isinstance(content, dict):
            raise InputError(f"{self.file}: 'pretrained' is not an object")
        found: dict[str, tuple[str | None, Setting]] = {}
        for name, entry in content.items():
            dataset = entry.get("dataset") if isinstance(entry, dict) else None
            generates = isinstance(entry, dict) and "bundle" in entry and "dataset" not in entry
            if not (isinstance(dataset, str) or generates):
                hint = "name its 'dataset', or a 'bundle' that generates what it trains on"
                raise InputError(f"{self.file}: pretrained: {name}: {hint}")
            setting = {key: value for key, value in entry.items() if key != "dataset"}
            found[name] = (dataset, self.setting("pretrained", name, setting))
        return found


def _check_comparison(file: Path, content: Mapping[str, Any], axes: Mapping[str, Sequence[Setting]]) -> None:
    """Check what tables compare, which would be known too late otherwise."""
    rows = content.get("published", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{file}: 'published' is not a list of objects")
    if "compare" in content:
        _refuse_unknown(file, "compare: ", [content["compare"]], tuple(axes))
    names = [str(value.name) for value in axes.get(content.get("compare", "initialisation"), [])]
    if "baseline" in content and names:
        _refuse_unknown(file, "baseline: ", [str(content["baseline"])], names)


def _refuse_unknown(file: Path, place: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise InputError(f"{file}: {place}no such key {name!r}; {hint}")


def _is_value(value: Any) -> bool:
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)
