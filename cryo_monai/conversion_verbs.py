"""Verbs that hand volumes and particles to other programs: convert, view."""

from __future__ import annotations

import sys

from cryo_monai.command_line import UsageError, late_bar, split_list


def convert(source: str, target: str, to: str = "", voxel_size: str = "", permissive: bool = False) -> None:
    """Write a volume, or all volumes below a folder, in another format: MRC, NIfTI (.nii, .nii.gz), NPY.

    Voxels stay bit for bit, in their data type where the format has it; axes stay, so that both files are classified
    alike; NIfTI gets the voxel size in Å, with unit unknown. An interrupted call on a folder is continued by the
    same call; nothing is replaced.

    Args:
        source: a volume (000005@stack.mrcs for the fifth of a stack), or a folder.
        target: a new file, whose ending says the format; or a new folder, which gets the same sub-folders.
        to: for folders: nii.gz, nii, mrc or npy.
        voxel_size: Å, one number or three for z,y,x; goes before what files say.
        permissive: accept old MRC files.
    """
    from pathlib import Path

    from cryo_monai.conversions import convert_tree, convert_volume

    size = _voxel_size(voxel_size)
    if not Path(source).is_dir():
        if to:
            raise UsageError(f"--to {to}: for folders; {source} is none, and the ending of the target says the format")
        for note in convert_volume(source, target, voxel_size=size, permissive=permissive):
            print(f"note: {note}", file=sys.stderr)
        print(f"converted: {target}")
        return
    if not to:
        raise UsageError(f"convert: {source} is a folder; say the format with --to (nii.gz, nii, mrc, npy)")
    with late_bar(desc="converting", unit="volume") as show:
        done = convert_tree(source, target, to=to, voxel_size=size, permissive=permissive, progress=show)
    for note, count in done.notes.items():
        print(f"note: {note} ({count} volumes)", file=sys.stderr)
    if done.left_out:
        print(f"note: {done.left_out} have that format already, and were not copied", file=sys.stderr)
    before = f", {done.present} before" if done.present else ""
    print(f"converted: {done.converted} volumes{before}: {target}")


def view(
    source: str,
    output_dir: str = "",
    tomograms: str = "",
    pixel_size: float = 0.0,
    tomogram_voxel_size: float = 0.0,
    permissive: bool = False,
) -> None:
    """Write files that napari and ChimeraX open directly, and print the commands that open them.

    Volumes become NPY, which napari opens without a plugin; points are a CSV of napari's and markers of ChimeraX, one
    set per class in the colours of the reports; a script for each program puts them together. Tomograms are copied.

    Args:
        source: a particle list; a folder of simulate_tomograms; a folder of explain, or the run that it is in; or a
            volume.
        output_dir: new folder; by default NAME_view beside the source. The same call writes it anew.
        tomograms: of a particle list: files and folders, comma-separated.
        pixel_size: of a particle list: Å per unit of its coordinates; goes before what it says.
        tomogram_voxel_size: Å; goes before what files say.
        permissive: accept old MRC files.
    """
    from cryo_monai.views import write_view

    scenes = write_view(
        source,
        output_dir or None,
        tomograms=split_list(tomograms),
        pixel_size=pixel_size or None,
        tomogram_voxel_size=tomogram_voxel_size or None,
        permissive=permissive,
    )
    for scene in scenes[:3]:
        with_script, plain, chimerax = scene.commands()
        print(
            f"{scene.name}:\n  {with_script}\n  {plain}   # without colours, and without running a script\n  {chimerax}"
        )
    if len(scenes) > 3:
        print(f"and {len(scenes) - 3} more in {scenes[0].chimerax.parent}")


def _voxel_size(text: str) -> float | tuple[float, float, float] | None:
    """Read one number, or three for z, y, x."""
    if not text:
        return None
    try:
        sizes = [float(part) for part in split_list(text)]
    except ValueError:
        sizes = []
    if len(sizes) == 1:
        return sizes[0]
    if len(sizes) == 3:
        return sizes[0], sizes[1], sizes[2]
    raise UsageError(f"--voxel_size {text}: give a number, or three for z,y,x, separated by commas")
