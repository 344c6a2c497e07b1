"""What can be looked at: a particle list, simulated tomograms, explanations of a run, a volume."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cryo_monai.errors import InputError
from cryo_monai.folders import LOCK, claimed, note_recipe
from cryo_monai.views.particle_views import view_particles
from cryo_monai.views.scenes import Scene
from cryo_monai.views.volume_views import TABLE, view_explanations, view_volume
from cryo_monai.volumes import is_volume_file, stack_member

KIND = "view"
LIST = "particles.star"


def write_view(
    source: str | os.PathLike[str],
    output_dir: str | os.PathLike[str] | None = None,
    *,
    tomograms: Sequence[str | os.PathLike[str]] = (),
    pixel_size: float | None = None,
    tomogram_voxel_size: float | None = None,
    permissive: bool = False,
) -> list[Scene]:
    """Write what napari and ChimeraX open; the same call writes it anew where its source has changed.

    Parameters
    ----------
    source : path
        A particle list; a folder of simulated tomograms, or another with ``particles.star`` and its tomograms; a
        folder of explanations, or the run that they are in; a volume.
    output_dir : path, optional
        New, or of an earlier call for the same source; by default beside the source, ``NAME_view``.
    tomograms, pixel_size, tomogram_voxel_size, permissive
        Of particle lists; see `view_particles`.

    Raises
    ------
    CryoMonaiError
        In one line, for anything the user can mend.
    """
    path = Path(source)
    if not stack_member(path)[0].exists():
        raise InputError(f"{path}: no such file or folder")
    kind, found = _kind_of(path)
    places = list(tomograms) or ([found.parent] if kind == "particles" and path.is_dir() else [])
    folder = _default(path) if output_dir is None else Path(output_dir)
    if folder.resolve() == path.resolve():
        raise InputError(f"{folder}: is what is to be looked at; choose another --output_dir")
    recipe = {"source": str(path.resolve()), "tomograms": [str(Path(place).resolve()) for place in places]}
    with claimed(folder, KIND):
        note_recipe(folder, recipe, KIND)
        try:
            if kind == "explanations":
                return view_explanations(found, folder)
            if kind == "volume":
                return view_volume(found, folder, permissive=permissive)
            return view_particles(
                found,
                folder,
                tomograms=places,
                pixel_size=pixel_size,
                tomogram_voxel_size=tomogram_voxel_size,
                permissive=permissive,
            )
        finally:
            if [entry.name for entry in folder.iterdir() if entry.name != LOCK] == [f"{KIND}.json"]:
                (folder / f"{KIND}.json").unlink()  # nothing could be written: a mistake leaves nothing


def _kind_of(path: Path) -> tuple[str, Path]:
    """Return what a source is, and the file or folder that holds it."""
    if path.is_dir():
        for folder in (path, path / "explanations"):
            if (folder / TABLE).is_file():
                return "explanations", folder
        if (path / LIST).is_file():
            return "particles", path / LIST
        raise InputError(
            f"{path}: neither explanations nor {LIST} with its tomograms; write some with cryo-monai explain, or name "
            "a particle list, such as that of cryo-monai classify RUN --particles"
        )
    return ("volume" if is_volume_file(stack_member(path)[0]) else "particles"), path


def _default(path: Path) -> Path:
    absolute = Path(os.path.abspath(path))
    return absolute.with_name(f"{absolute.name if absolute.is_dir() else absolute.name.partition('.')[0]}_view")
