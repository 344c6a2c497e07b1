"""Verbs of particles in tomograms: extract, classify."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryo_monai.command_line import counted, late_bar, split_list

if TYPE_CHECKING:
    from cryo_monai.locations import LocatedParticles


def extract(
    particles: str,
    output_dir: str,
    box: int,
    tomograms: str = "",
    voxel_size: float = 0.0,
    rescaling: str = "fourier",
    rotate: bool = False,
    invert: bool = False,
    edge: str = "pad",
    normalise: str = "z_score",
    background: int = 0,
    seed: int = 0,
    stack: bool = False,
    class_column: str = "",
    pixel_size: float = 0.0,
    tomogram_voxel_size: float = 0.0,
    permissive: bool = False,
    num_workers: int = 0,
) -> None:
    """Cut subtomograms out of tomograms: MRC files (or a stack), particles.star, dataset.json for train, boxes.png.

    An interrupted call is continued by the same call.

    Args:
        particles: RELION 3 to 5 STAR or optimisation set, Warp, STOPGAP, Dynamo, copick, portal ndjson, or CSV.
        output_dir: new folder.
        box: edge in voxels.
        tomograms: files and folders, comma-separated; not needed where a RELION 5 project names them.
        voxel_size: of the boxes in Å; by default that of the tomograms, which then have to agree.
        rescaling: fourier or lanczos.
        rotate: turn particles back into the pose of the reference.
        invert: change the sign, where density is bright and should be dark.
        edge: boxes that reach beyond the tomogram: pad (with the mean), skip or error.
        normalise: z_score, background (outside a sphere, as RELION does) or none.
        background: boxes of class background, drawn away from the particles, in each tomogram.
        seed: of the background's places.
        stack: one subtomograms.mrcs instead of a file per particle.
        class_column: column of the list that has class names.
        pixel_size: Å per unit of the list's coordinates; goes before what the list says.
        tomogram_voxel_size: Å; goes before what files say.
        permissive: accept old MRC files.
        num_workers: processes.
    """
    from cryo_monai.boxes import BoxSettings
    from cryo_monai.extraction import extract as extract_boxes
    from cryo_monai.particle_pictures import write_box_sheet

    located = located_particles(particles, tomograms, pixel_size, class_column, tomogram_voxel_size, permissive)
    settings = BoxSettings(
        box=box,
        voxel_size=voxel_size or located.voxel_size,
        rescaling=rescaling,
        rotate=rotate,
        invert=invert,
        edge=edge,
        normalise=normalise,
    )
    with late_bar(desc="extracting", unit="box") as bar:
        target = extract_boxes(
            located,
            output_dir,
            settings,
            background=background,
            seed=seed,
            stack=stack,
            num_workers=num_workers,
            at_end=lambda boxes: write_box_sheet(boxes, f"{output_dir}/boxes.png"),
            progress=counted(bar, len(located) + background * len(located.tomograms)),
        )
    content = json.loads(target.read_text())
    lists = {name: len(content[name]) for name in ("training", "inference") if name in content}
    shown = ", ".join(
        f"{count} {'labelled' if name == 'training' else 'without label'}" for name, count in lists.items()
    )
    dropped = len(located) + background * len(located.tomograms) - sum(lists.values())
    print(f"{shown} boxes of {box} voxels of {settings.voxel_size:g} Å: {target}, particles.star, boxes.png")
    if dropped:
        print(f"{dropped} left out, whose boxes reach beyond their tomogram")
    contrast = content["contrast"]
    print(f"density is {contrast['density']} in these boxes ({contrast['standard_errors']:g} standard errors)")


def classify_tomograms(
    run_dir: str,
    particles: str,
    output: str = "",
    tomograms: str = "",
    min_probability: float = 0.0,
    pixel_size: float = 0.0,
    tomogram_voxel_size: float = 0.0,
    permissive: bool = False,
    ids: Mapping[str, str] | None = None,
    **options: Any,
) -> None:
    """Classify the particles of a list where they are; see `classify` of the command line."""
    from cryo_monai.particle_pictures import write_particle_slices
    from cryo_monai.tomogram_classes import classify_particles, settings_for

    located = located_particles(particles, tomograms, pixel_size, "", tomogram_voxel_size, permissive)
    settings = settings_for(run_dir, located, **options)
    source = Path(particles.rstrip("/"))
    # Picks of copick are written to a folder.
    suffix = "" if located.particles.format == "copick" else source.suffix
    target = Path(output) if output else Path(run_dir) / f"{source.stem}_classes{suffix}"
    with late_bar(desc="classifying", unit="particle") as bar:
        result = classify_particles(
            run_dir,
            located,
            settings,
            target,
            min_probability=min_probability,
            ids=ids,
            progress=lambda done: bar(done, len(located)),
        )
    shown = result.named()
    write_particle_slices(shown, target.with_name(f"{target.stem}_slices.png"), classes=result.class_names)
    print(f"{len(result.names)} particles{counts_text(result.names)}")
    print(f"classes: {target}; beside it {target.stem}_probabilities.csv, _summary.csv, _points/, _slices.png")


def located_particles(
    particles: str, tomograms: str, pixel_size: float, class_column: str, tomogram_voxel_size: float, permissive: bool
) -> LocatedParticles:
    """Read a list, and find the places of its particles in tomograms."""
    from cryo_monai.locations import locate_particles
    from cryo_monai.particles import read_particles

    given = read_particles(particles, pixel_size=pixel_size or None, class_column=class_column or None)
    _warn_of_pixel_size(particles, pixel_size)
    return locate_particles(
        given,
        split_list(tomograms),
        tomogram_voxel_size=tomogram_voxel_size or None,
        permissive=permissive,
    )


def _warn_of_pixel_size(particles: str, pixel_size: float) -> None:
    """Say that a list has another pixel size than the one that was given for it."""
    from cryo_monai.errors import InputError
    from cryo_monai.particles import read_particles

    try:
        sizes = read_particles(particles).pixel_size.tolist() if pixel_size else []
    except InputError:
        return  # it contradicts itself, which is why a size was given
    said = sorted({float(size) for size in sizes if size == size and abs(size / pixel_size - 1) > 0.01})
    if said:
        print(f"warning: {particles}: says pixels of {said[0]:g} Å; {pixel_size:g} Å were given", file=sys.stderr)


def counts_text(names: list[str]) -> str:
    """Show how many there are of each class, in brackets."""
    from collections import Counter

    counts = Counter(name or "no class" for name in names)
    if set(counts) == {"no class"}:
        return ""
    return " (" + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) + ")"
