"""Command line: ``cryo-monai VERB ...`` or ``python -m cryo_monai VERB ...``."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from typing import TYPE_CHECKING

from cryo_monai.command_line import (
    Verb,
    Verbs,
    counted,
    late_bar,
    parameters_of,
    refuse_unknown,
    run,
    split_list,
    split_numbers,
)
from cryo_monai.weight_verbs import fetch_weights, inspect_weights, list_weights, pin_weights

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


def train(bundle: str, output_dir: str, overlays: str = "", resume: bool = False, **ids: str) -> None:
    """Train a bundle; what evaluate and classify need is kept in output_dir.

    Args:
        bundle: bundle folder, such as bundles/subtomogram_classification.
        output_dir: run folder for checkpoints (models/), metrics.json, metrics.csv, tensorboard/ and run.json.
        overlays: comma-separated JSON files that change the recipe, such as configs/quickstart.json.
        resume: go on with the run in output_dir; what it was started with need not be given again.
        ids: any id of the bundle's train.json: --dataset_dir DIR, --num_classes N (10 in the cryo-ET bundle), --seed,
            --split [3,1,1], --lr, --max_epochs, --batch_size, --device cpu, --cache_device cuda, --nan mean,
            --optimizer @optimizers#adam, --train#random_clips#crop_prob 0 ...
    """
    from cryo_monai.runs import train_bundle

    train_bundle(bundle, output_dir, overlays=split_list(overlays), resume=resume, ids=ids)
    print(f"best weights: {output_dir}/models/model.pt; score them with: cryo-monai evaluate {output_dir}")


def evaluate(run_dir: str, **ids: str) -> None:
    """Score the test split with the best checkpoint of a run.

    Writes evaluation.json, confusion_matrix.csv and test_predictions.csv.

    Args:
        run_dir: the output_dir of a training.
        ids: any id of the bundle's evaluate.json.
    """
    from cryo_monai.runs import evaluate_run, summarise

    evaluate_run(run_dir, ids=ids)
    print(summarise(run_dir))


def classify(run_dir: str, data: str, output: str = "", **ids: str) -> None:
    """Classify volumes with the best checkpoint of a run; writes path, class name and probabilities as CSV.

    Args:
        run_dir: the output_dir of a training.
        data: a volume, a folder of volumes, or a datalist JSON.
        output: the CSV; predictions.csv in run_dir by default.
        ids: any id of the bundle's inference.json.
    """
    from cryo_monai.runs import classify_with_run

    print(f"predictions: {classify_with_run(run_dir, data, output or None, ids=ids)}")


def quickstart(
    bundle: str,
    overlays: str,
    output_dir: str = "runs/quickstart",
    num_per_class: int = 120,
    snr: float = 0.5,
    seed: int = 0,
) -> None:
    """Simulate, train, evaluate and classify in minutes on two CPU cores, and print a summary.

    Args:
        bundle: bundles/subtomogram_classification.
        overlays: configs/quickstart.json.
        output_dir: new folder for data and results; the same call goes on where an interrupted one stopped.
        num_per_class: simulated volumes per class.
        snr: signal-to-noise ratio of the simulation.
        seed: of simulation and training.
    """
    from cryo_monai.runs import classify_with_run, evaluate_run, has_state, summarise, train_bundle

    data = f"{output_dir}/data"
    flags = f"--num_per_class {num_per_class} --clean False --snr {snr} --neighbours 0 --seed {seed}"
    print(f"$ cryo-monai simulate {data} {flags}")
    simulate(data, num_per_class=num_per_class, clean=False, snr=str(snr), neighbours="0", seed=str(seed))
    resume = has_state(output_dir)
    options = f"--overlays {overlays} --dataset_dir {data} --seed {seed}" + (" --resume" if resume else "")
    print(f"$ cryo-monai train {bundle} {output_dir} {options}")
    ids = {"dataset_dir": data, "seed": str(seed)}
    train_bundle(bundle, output_dir, overlays=split_list(overlays), resume=resume, ids=ids)
    print(f"$ cryo-monai evaluate {output_dir}")
    evaluate_run(output_dir)
    print(f"$ cryo-monai classify {output_dir} {data}/dataset.json")
    classify_with_run(output_dir, f"{data}/dataset.json")
    print(summarise(output_dir))


def embed(
    bundle: str,
    data: str,
    output: str = "embeddings.npz",
    weights: str = "",
    overlays: str = "",
    seed: int = 0,
    **ids: str,
) -> None:
    """Write the pooled features of volumes, before any classifier, as NPZ and CSV.

    An interrupted call is continued by the same call.

    Args:
        bundle: bundle folder, or the output_dir of a training for its network and its best weights.
        data: a volume, a folder of volumes (folders in it name the classes), a datalist JSON, or a MedMNIST3D npz.
        output: the NPZ: features (float32), labels (-1 where unknown), class_names, paths, splits. The CSV beside it
            has the same. A file that exists is not replaced.
        weights: for a bundle: video, image, a name that `weights list` shows, a file, or nothing for random weights.
        overlays: for a bundle: comma-separated JSON files, such as configs/backbones/swin3d_t.json.
        seed: of random weights.
        ids: any id of the bundle's inference.json, and --input_range, --inflation.
    """
    from cryo_monai.runs import embed_with

    with late_bar(desc="embedding", unit="volume") as show:
        written = embed_with(
            bundle,
            data,
            output,
            weights=weights or None,
            overlays=split_list(overlays),
            seed=seed,
            progress=show,
            ids=ids,
        )
    print(f"features: {written} and {written.with_suffix('.csv')}")


VERBS: Verbs = {
    "simulate": simulate,
    "simulate_tomograms": simulate_tomograms,
    "train": train,
    "evaluate": evaluate,
    "classify": classify,
    "embed": embed,
    "quickstart": quickstart,
    "weights": {"list": list_weights, "fetch": fetch_weights, "inspect": inspect_weights, "pin": pin_weights},
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 for errors, 2 for usage, 75 when stopped and saved."""
    return run(VERBS, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
