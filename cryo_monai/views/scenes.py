"""Scenes for two viewers: a script of Python for napari, and a script of commands for ChimeraX."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cryo_monai.errors import InputError
from cryo_monai.files import atomic_write_text

# napari opens whole numbers of 32 and 64 bits as labels and everything else as an image
# (napari/layers/image/_image_utils.py, guess_labels).
LABEL_TYPE = np.dtype("int32")
# Runs wherever napari does, and needs nothing but napari.
_NAPARI_SCRIPT = '''"""{title}. Written by cryo-monai; open it with: napari {name}"""

import csv
import json
from pathlib import Path

import napari
import numpy as np

FOLDER = Path(globals().get("__file__") or {path}).parent
LAYERS = json.loads({layers})

viewer = napari.current_viewer() or napari.Viewer()
for layer in LAYERS:
    if layer["kind"] == "points":
        with open(FOLDER / layer["file"], encoding="utf-8", newline="") as stream:
            rows = [row for row in csv.DictReader(stream) if row["class_name"] == layer["class_name"]]
        places = np.array([[float(row[f"axis-{{n}}"]) for n in range(3)] for row in rows])
        features = {{key: [row[key] for row in rows] for key in ("id", "class_name", "probability")}}
        viewer.add_points(places, features=features, out_of_slice_display=True, **layer["options"])
    else:
        data = np.load(FOLDER / layer["file"], mmap_mode="r")
        add = viewer.add_labels if layer["kind"] == "labels" else viewer.add_image
        add(np.asarray(data) if layer["kind"] == "labels" else data, **layer["options"])

if __name__ == "__main__":
    napari.run()
'''


@dataclass(frozen=True)
class Scene:
    """What was written to look at one volume.

    Attributes
    ----------
    name : str
        Of the tomogram or volume.
    napari : Path
        Script with one layer per class, in the colours of the reports.
    plain : tuple of Path
        What napari opens without running a script: volumes (NPY) and points (CSV).
    chimerax : Path
        Script of commands.
    """

    name: str
    napari: Path
    plain: tuple[Path, ...]
    chimerax: Path

    def commands(self) -> list[str]:
        """Return the command lines that open it."""
        files = " ".join(shlex.quote(str(file)) for file in self.plain)
        return [
            f"napari {shlex.quote(str(self.napari))}",
            f"napari {files}",
            f"chimerax {shlex.quote(str(self.chimerax))}",
        ]


def safe_name(text: str) -> str:
    """Return a name for files: without what file systems, shells and ChimeraX give a meaning to."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.") or "unnamed"


def safe_names(texts: Sequence[str]) -> list[str]:
    """Return a name for files for each of some names, no two alike, also where case makes no difference."""
    names: list[str] = []
    taken: set[str] = set()
    for text in texts:
        name = safe_name(text)
        number = 2
        while name.lower() in taken:
            name, number = f"{safe_name(text)}_{number}", number + 1
        taken.add(name.lower())
        names.append(name)
    return names


def write_napari_script(path: Path, title: str, layers: Sequence[Mapping[str, Any]]) -> Path:
    """Write a script that adds layers to the viewer that runs it, or to a new one.

    Parameters
    ----------
    path : Path
        Target, ending in .py.
    title : str
        What is shown.
    layers : sequence of mapping
        ``kind`` image, labels or points; ``file`` beside the script; ``options`` of the layer; for points
        ``class_name``.
    """
    text = _NAPARI_SCRIPT.format(
        title=safe_name(title), name=path.name, path=repr(str(path.resolve())), layers=repr(json.dumps(list(layers)))
    )
    atomic_write_text(path, text)
    return path


def write_chimerax_script(path: Path, title: str, commands: Sequence[str]) -> Path:
    """Write a command file; ChimeraX runs it in the folder that it lies in (open_command_script, core/scripting.py)."""
    lines = [f"# {safe_name(title)}. Written by cryo-monai; open it with: chimerax {path.name}", *commands, "view"]
    atomic_write_text(path, "\n".join(lines) + "\n")
    return path


def chimerax_file(file: Path, folder: Path) -> str:
    """Return a path as an argument of a ChimeraX command in a script in ``folder``: relative, in quotation marks.

    Raises
    ------
    InputError
        For names that cannot be written in a command.
    """
    relative = os.path.relpath(file.resolve(), folder.resolve())
    if any(mark in relative for mark in '"\n\r\\'):
        raise InputError(f"{file}: ChimeraX cannot be told of a name with quotation marks, backslashes or line breaks")
    return f'"{relative}"'


def save_array(path: Path, data: npt.NDArray[Any]) -> Path:
    """Write an array as NPY, crash-safely, in a type that napari shows as what it is."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.npy")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(temporary, data.astype(image_type(data.dtype), copy=False))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def image_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type to write an image in: its own, or float32 for what graphics cards and napari take otherwise."""
    own = dtype.newbyteorder("=")
    return own if own.name in ("int8", "uint8", "int16", "uint16", "float32") else np.dtype("float32")
