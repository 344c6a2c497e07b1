"""Command line: ``cryo-monai VERB ...`` or ``python -m cryo_monai VERB ...``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cryo_monai.command_line import Verbs, run, split_list


def simulate(
    output_dir: str,
    num_per_class: int = 500,
    box: int = 32,
    snr: float = 0.03,
    voxel_size: float = 10.0,
    resolution: float = 25.0,
    max_tilt_deg: float = 60.0,
    defocus_um: float = 5.0,
    max_shift: float = 2.0,
    classes: str = "",
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Simulate labelled subtomograms of the built-in assemblies: MRC files and dataset.json.

    The defaults are the paper's layout: 10 classes x 500 volumes of 32 x 32 x 32 at SNR 0.03. An interrupted call is
    continued by the same call.

    Args:
        output_dir: new folder for the data set.
        num_per_class: volumes per class.
        box: edge of a volume in voxels.
        snr: variance of the signal over variance of the noise; inf for none.
        voxel_size: in Å.
        resolution: of the structures, in Å.
        max_tilt_deg: the tilt series runs from minus to plus this angle.
        defocus_um: underfocus in µm.
        max_shift: largest shift of a particle along each axis, in voxels.
        classes: comma-separated names of built-in assemblies; by default all ten: c2_64kda, c2_84kda, c7_400kda,
            d2_140kda, d3_290kda, d3_310kda, d4_540kda, d7_300kda, o_440kda, t_200kda.
        seed: same seed, same data.
        device: cpu or cuda.
    """
    from tqdm.auto import tqdm

    from cryo_monai.simulation import SimulationSettings, write_dataset
    from cryo_monai.simulation.assemblies import assemblies_by_name

    names = tuple(classes.split(",")) if classes else None
    settings = SimulationSettings(
        box=box,
        voxel_size=voxel_size,
        resolution=resolution,
        snr=snr,
        max_tilt_deg=max_tilt_deg,
        defocus_um=defocus_um,
        max_shift=max_shift,
        seed=seed,
    )
    with tqdm(total=num_per_class * len(assemblies_by_name(names)), unit="volume", desc="simulating") as bar:
        target = write_dataset(
            output_dir, settings, num_per_class=num_per_class, classes=names, device=device, progress=bar.update
        )
    print(f"data set: {target}")


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
    settings = {"num_per_class": num_per_class, "snr": snr, "seed": seed}
    print(f"$ cryo-monai simulate {data}" + "".join(f" --{name} {value}" for name, value in settings.items()))
    simulate(data, num_per_class=num_per_class, snr=snr, seed=seed)
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

    with _late_bar(desc="embedding", unit="volume") as show:
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


def list_weights(backbone: str = "") -> None:
    """List the public weights: name, data set, accuracy, licence, and whether they are here.

    Args:
        backbone: only those of this backbone.
    """
    from difflib import get_close_matches

    from cryo_monai.downloads import cached_path, pinned_hash
    from cryo_monai.errors import InputError
    from cryo_monai.weight_records import RECORDS

    if backbone and all(record.backbone != backbone for record in RECORDS):
        near = get_close_matches(backbone, {record.backbone for record in RECORDS}, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"--backbone {backbone}: no public weights for a backbone of that name{hint}")
    rows: list[tuple[str, ...]] = [("name", "backbone", "data set", "top-1", "licence", "pinned", "here")]
    for record in RECORDS:
        if backbone in ("", record.backbone):
            top1 = "" if record.top1 is None else f"{record.top1:.1f} %"
            marks = ("yes" if there else "no" for there in (pinned_hash(record), cached_path(record).is_file()))
            rows.append((record.name, record.backbone, record.dataset, top1, record.licence, *marks))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def fetch_weights(name: str, sha256: str = "") -> None:
    """Download weights into the cache folder and verify them; the same call goes on with a download that was cut.

    Args:
        name: as `weights list` shows it.
        sha256: hash that the file must have, for weights that are not pinned yet.
    """
    from cryo_monai.downloads import fetch_weights as fetch
    from cryo_monai.weight_records import look_up_record

    with _late_bar(desc=name, unit="B", unit_scale=True, unit_divisor=1024) as progress:
        path = fetch(look_up_record(name), sha256 or None, progress)
    print(f"{path}\nuse it with: --weights {name}")


def pin_weights(name: str, file: str = "") -> None:
    """Take the hash of published weights, on a connected machine that you trust, so that others can verify theirs.

    Args:
        name: as `weights list` shows it.
        file: JSON to write to; weight_pins.json in the cache folder by default.
    """
    from pathlib import Path

    from cryo_monai.downloads import pin_weights as pin
    from cryo_monai.weight_records import look_up_record

    with _late_bar(desc=name, unit="B", unit_scale=True, unit_divisor=1024) as progress:
        written, sha256 = pin(look_up_record(name), Path(file) if file else None, progress)
    print(f"{name}: SHA-256 {sha256}, kept in {written}")


def inspect_weights(file: str) -> None:
    """Say what a file of weights is and which backbones it fits, or fits nearly.

    Args:
        file: as its publisher wrote it, or a checkpoint of this package; or the name of published weights.
    """
    from cryo_monai.recognition import inspect_weights as inspect

    print(inspect(file))


@contextmanager
def _late_bar(**options: Any) -> Iterator[Callable[[int, int | None], None]]:
    """Give a function that shows what is done of a total, from its first call on: mistakes come before that."""
    from tqdm.auto import tqdm

    bars: list[tqdm[None]] = []

    def show(done: int, total: int | None) -> None:
        if not bars:
            bars.append(tqdm(total=total, **options))
        bars[0].update(done - bars[0].n)

    try:
        yield show
    finally:
        for bar in bars:
            bar.close()


VERBS: Verbs = {
    "simulate": simulate,
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
