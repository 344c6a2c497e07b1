"""Verbs of particle lists: pick, keep, label, score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from cryo_monai.command_line import late_bar, split_list
from cryo_monai.particle_verbs import counts_text, located_particles

if TYPE_CHECKING:
    from cryo_monai.locations import LocatedParticles
    from cryo_monai.particles import Particles


def pick(
    tomograms: str,
    output_dir: str,
    sigma: float = 70.0,
    ratio: float = 1.1,
    threshold: float = 3.0,
    bright: bool = False,
    min_distance: float = 0.0,
    border: float = 0.0,
    max_picks: int = 0,
    templates: str = "",
    structure_dir: str = "",
    assembly: str = "1",
    angular_step_deg: float = 30.0,
    min_tilt_deg: float = -60.0,
    max_tilt_deg: float = 60.0,
    low_pass: float = 0.0,
    shift: float = 30.0,
    template_box: int = 32,
    top: int = 0,
    review: bool = True,
    review_box: float = 320.0,
    tomogram_voxel_size: float = 0.0,
    permissive: bool = False,
    device: str = "cpu",
) -> None:
    """Pick particles: blobs of one size, ranked by templates if given; writes picks.star, review/, picks.png.

    An interrupted call is continued by the same call. Tick what to keep in review/review.html (or review.csv), then:
    cryo-monai keep picks.star review.csv kept.star

    Args:
        tomograms: files and folders, comma-separated: MRC, TIFF, OME-Zarr.
        output_dir: new folder for the picks.
        sigma: of the narrower Gaussian, in Å: about half the radius of the particles or a little more.
        ratio: wider to narrower Gaussian.
        threshold: t in mean + t (max - mean) / 20 of the response.
        bright: seek what is brighter than its surroundings, not darker.
        min_distance: between picks in Å; by default sigma.
        border: Å at the tomogram's faces without picks.
        max_picks: strongest picks of each tomogram; 0 for all.
        templates: comma-separated maps, atomic models, PDB ids or built-in assemblies (see simulate): every pick gets
            the class, pose, place and correlation of the one that fits it best.
        structure_dir: where files of templates are.
        assembly: biological assembly of atomic models, or asu.
        angular_step_deg: of the rotational search.
        min_tilt_deg: of the tilt series; decides the missing wedge of templates.
        max_tilt_deg: of the tilt series.
        low_pass: Å, of the correlation; 0 for all that the voxels hold.
        shift: Å about a pick in which the centre is sought.
        template_box: edge of templates in voxels.
        top: picks that are kept of each template, the best; 0 for all.
        review: write review/review.html and review.csv.
        review_box: edge of the thumbnails in Å.
        tomogram_voxel_size: Å; goes before what files say.
        permissive: accept old MRC files.
        device: cpu or cuda.
    """
    from cryo_monai.locations import open_tomograms
    from cryo_monai.particle_pictures import write_particle_slices
    from cryo_monai.picks import PickSettings, pick_tomograms
    from cryo_monai.reviewing import write_pick_review

    settings = PickSettings(
        sigma=sigma,
        ratio=ratio,
        threshold=threshold,
        bright=bright,
        min_distance=min_distance,
        border=border,
        max_picks=max_picks,
        templates=tuple(split_list(templates)),
        angular_step_deg=angular_step_deg,
        min_tilt_deg=min_tilt_deg,
        max_tilt_deg=max_tilt_deg,
        low_pass=low_pass,
        shift=shift,
        template_box=template_box,
        top=top,
        assembly=assembly,
    )
    opened = open_tomograms(split_list(tomograms), voxel_size=tomogram_voxel_size or None, permissive=permissive)
    with late_bar(unit="block") as bar:
        found = pick_tomograms(
            opened,
            output_dir,
            settings,
            structure_dir=structure_dir or None,
            device=device,
            progress=lambda what, done, total: bar(done, total),
        )
    write_particle_slices(found, f"{output_dir}/picks.png", radius=max(sigma, 40.0))
    classes = counts_text(found.particles.class_names)
    print(f"{len(found)} picks in {len(opened)} tomograms{classes}: {output_dir}/picks.star, picks.png")
    print("tomograms: " + ", ".join(tomogram.path.name for tomogram in opened))
    if review:
        page = write_pick_review(found, Path(output_dir) / "review", edge=review_box)
        print(f"review: {page} or review.csv there; then: cryo-monai keep {output_dir}/picks.star CSV KEPT.star")


def keep(particles: str, review: str, output: str) -> None:
    """Keep the particles that are ticked in a review.

    Args:
        particles: the list that was reviewed.
        review: review.csv, as the page saved it or as a spreadsheet did.
        output: the new list, .star, .csv, .tbl or .ndjson.
    """
    from cryo_monai.particles import read_particles
    from cryo_monai.reviewing import kept_particles

    before = read_particles(particles)
    after = kept_particles(before, review)
    _write_list(output, after)
    print(f"{len(after)} of {len(before)} particles kept: {output}")


def label(
    particles: str,
    truth: str,
    output: str,
    distance: float = 100.0,
    fraction: float = 1.0,
    seed: int = 0,
    tomograms: str = "",
    pixel_size: float = 0.0,
    truth_pixel_size: float = 0.0,
    class_column: str = "",
) -> None:
    """Give picks the classes of a list that has them, by place; what is near none of it becomes background.

    Args:
        particles: the picks.
        truth: a list with class names, of the same tomograms.
        output: the picks with classes, .star, .csv or .ndjson.
        distance: Å, within which two are the same particle.
        fraction: share of each class that gets its label; the others get none.
        seed: which.
        tomograms: files and folders, where lists count from the middle or do not say how large their pixels are.
        pixel_size: Å per unit of the picks' coordinates; goes before what the file says.
        truth_pixel_size: the same of the truth.
        class_column: column of the truth that has class names.
    """
    from cryo_monai.matching import label_particles

    found = _placed(particles, tomograms, pixel_size)
    known = _placed(truth, tomograms, truth_pixel_size, class_column)
    labelled = label_particles(found, known, distance=distance, fraction=fraction, seed=seed)
    _write_list(output, labelled, class_names=labelled.class_names)
    print(f"{len(labelled)} particles{counts_text(labelled.class_names)}: {output}")


def score(
    particles: str,
    truth: str,
    output: str = "",
    distance: float = 100.0,
    leave_out: str = "",
    tomograms: str = "",
    pixel_size: float = 0.0,
    truth_pixel_size: float = 0.0,
    class_column: str = "",
) -> None:
    """Compare classified particles with the truth: precision and recall of each class, and of the picking.

    Args:
        particles: the classified list.
        truth: a list with class names, of the same tomograms.
        output: JSON to write.
        distance: Å, within which two are the same particle.
        leave_out: a list whose labelled particles do not count, such as those that a network was trained on.
        tomograms: as in label.
        pixel_size: as in label.
        truth_pixel_size: as in label.
        class_column: column of the truth that has class names.
    """
    from cryo_monai.files import atomic_write_text
    from cryo_monai.matching import score_particles, score_text
    from cryo_monai.particles import read_particles

    out: list[str] = []
    if leave_out:
        trained = read_particles(leave_out)
        out = [name for name, called in zip(trained.ids, trained.class_names, strict=True) if called]
    found = _placed(particles, tomograms, pixel_size)
    known = _placed(truth, tomograms, truth_pixel_size, class_column)
    result = score_particles(found, known, distance=distance, leave_out=out)
    if output:
        atomic_write_text(output, json.dumps(result, indent=1) + "\n")
    print(score_text(result))


def _placed(particles: str, tomograms: str, pixel_size: float, class_column: str = "") -> Particles | LocatedParticles:
    """Read a list; with tomograms, find its places there."""
    from cryo_monai.particles import read_particles

    if tomograms:
        return located_particles(particles, tomograms, pixel_size, class_column, 0.0, False)
    return read_particles(particles, pixel_size=pixel_size or None, class_column=class_column or None)


def _write_list(output: str, particles: Particles, *, class_names: list[str] | None = None) -> None:
    """Write a new file: in the format and with all columns of the one that came in, if its ending is the same."""
    from cryo_monai.errors import InputError
    from cryo_monai.particles import write_particles, write_rows

    target = Path(output)
    if target.exists():
        raise InputError(f"{output}: exists; remove it, or choose another name")
    source = particles.path
    if source is not None and source.suffix.lower() == target.suffix.lower() and particles.format != "copick":
        write_rows(target, particles, class_names=class_names)
    else:
        write_particles(target, particles)
