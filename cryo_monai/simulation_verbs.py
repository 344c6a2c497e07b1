"""Verbs of the simulator: simulate, simulate_tomograms."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import TYPE_CHECKING

from cryo_monai.command_line import (
    Verb,
    counted,
    late_bar,
    parameters_of,
    refuse_unknown,
    split_list,
    split_numbers,
)

if TYPE_CHECKING:
    from cryo_monai.simulation import Preset, SimulationSettings, SubtomogramSimulator


def _simulation(verb: Verb, config: str, flags: dict[str, str]) -> tuple[SimulationSettings, Preset]:
    """Make settings of a preset and of flags; return them and the preset."""
    from cryo_monai.simulation import Preset, SimulationSettings, read_preset, settings_from

    refuse_unknown(flags, [*parameters_of(verb), *(field.name for field in fields(SimulationSettings))])
    preset = read_preset(config) if config else Preset()
    return settings_from(flags, preset.settings), preset


def simulate(
    output_dir: str,
    config: str = "",
    num_per_class: int = 0,
    structures: str = "",
    structure_dir: str = "",
    neighbours_from: str = "",
    assembly: str = "1",
    split: str = "0.6,0.2,0.2",
    clean: bool = True,
    preview: bool = False,
    device: str = "cpu",
    **settings: str,
) -> None:
    """Simulate labelled subtomograms: MRC files with the truth of each, and dataset.json.

    An interrupted call is continued by the same call. Every number is explained in docs/simulation.md.

    Args:
        output_dir: new folder for the data set.
        config: a preset, such as configs/simulation/paper.json; flags go before what it says.
        num_per_class: volumes per class; 500 by default.
        structures: the classes, comma-separated: mmCIF, PDB or MRC files, PDB ids (fetched once), or names of built-in
            assemblies; by default all ten, which are c2_64kda, c2_84kda, c7_400kda, d2_140kda, d3_290kda, d3_310kda,
            d4_540kda, d7_300kda, o_440kda and t_200kda.
        structure_dir: where files of structures are, those of PDB ids too.
        neighbours_from: what neighbours are drawn from, as structures; by default the classes.
        assembly: biological assembly of atomic models, or asu.
        split: fractions of training, validation and test.
        clean: write the noise-free scenes too.
        preview: write preview.png first, with one volume of each class.
        device: cpu or cuda.
        settings: --mode tilt_series or xulab, --snr 0.1 (inf for none), --box 32, --voxel_size 10, --resolution (Å),
            --seed, --neighbours 4, --neighbour_classes all or others, --max_shift 2, --max_tilt_deg 60,
            --tilt_step_deg 3, --tilt_scheme dose_symmetric, bidirectional or continuous, --tilts FILE (.tlt, .mdoc),
            --dose_per_tilt 3, --dose_weighting True, --voltage_kv 300, --spherical_aberration_mm 2.7,
            --amplitude_contrast 0.07, --phase_shift_deg 0, --defocus_um 4, --defocus_spread_um 1, --defocus_tilt_um
            0.05, --ctf_correction phase_flip or none, --alignment_error 2 (Å); in mode xulab --envelope 0.4.
    """
    from cryo_monai.previews import write_preview
    from cryo_monai.simulation import BUILT_IN, write_dataset

    chosen, preset = _simulation(simulate, config, settings)
    entries = split_list(structures) or preset.structures or BUILT_IN
    count = num_per_class or preset.num_per_class

    def show(simulator: SubtomogramSimulator) -> None:
        write_preview(simulator, f"{output_dir}/preview.png")
        print(f"preview: {output_dir}/preview.png")

    with late_bar(desc="simulating", unit="volume") as bar:
        target = write_dataset(
            output_dir,
            chosen,
            num_per_class=count,
            structures=entries,
            neighbours=split_list(neighbours_from) or preset.neighbours_from,
            split=split_numbers("split", split, float),
            clean=clean,
            device=device,
            assembly=assembly,
            structure_dir=structure_dir or None,
            at_start=show if preview else None,
            progress=counted(bar, count * len(entries)),
        )
    means = json.loads(target.read_text())["means"]
    snr = "none" if means["snr_measured"] is None else f"{means['snr_measured']:.3g}"
    print(f"data set: {target} (measured SNR {snr}, {means['occupancy']:.1%} of the boxes occupied, on average)")


def simulate_tomograms(
    output_dir: str,
    config: str = "",
    num_tomograms: int = 1,
    size: str = "64,256,256",
    num_particles: int = 200,
    structures: str = "",
    structure_dir: str = "",
    assembly: str = "1",
    device: str = "cpu",
    **settings: str,
) -> None:
    """Simulate whole crowded tomograms: MRC files, segmentations, particles.star and particles.csv.

    Args:
        output_dir: new folder; finished tomograms are kept when the call is repeated.
        config: a preset in mode tilt_series.
        num_tomograms: how many.
        size: z,y,x in voxels.
        num_particles: in each tomogram.
        structures: as in simulate.
        structure_dir: as in simulate.
        assembly: as in simulate.
        device: cpu or cuda.
        settings: as in simulate; the SNR is over the whole tomogram, and box, neighbours and shift play no part.
    """
    from cryo_monai.simulation import BUILT_IN, write_tomograms

    chosen, preset = _simulation(simulate_tomograms, config, settings)
    depth, height, width = split_numbers("size", size, int)
    with late_bar(desc="simulating", unit="tomogram") as bar:
        target = write_tomograms(
            output_dir,
            chosen,
            num_tomograms=num_tomograms,
            size=(depth, height, width),
            num_particles=num_particles,
            structures=split_list(structures) or preset.structures or BUILT_IN,
            assembly=assembly,
            structure_dir=structure_dir or None,
            device=device,
            progress=counted(bar, num_tomograms),
        )
    print(f"particles: {target}")
