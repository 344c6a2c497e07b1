"""Command line: ``cryo-monai VERB ...`` or ``python -m cryo_monai VERB ...``."""

from __future__ import annotations

import sys

from cryo_monai.budget_verbs import budget
from cryo_monai.command_line import (
    UsageError,
    Verbs,
    late_bar,
    run,
    split_list,
)
from cryo_monai.conversion_verbs import convert, view
from cryo_monai.dataset_verbs import check, control
from cryo_monai.export_verbs import export
from cryo_monai.particle_verbs import classify_tomograms, extract
from cryo_monai.pick_verbs import keep, label, pick, score
from cryo_monai.pretraining_verbs import pretrain
from cryo_monai.release_verbs import package, trust
from cryo_monai.report_verbs import compare, explain
from cryo_monai.report_verbs import report as make_report
from cryo_monai.simulation_verbs import simulate, simulate_tomograms
from cryo_monai.sweep_verbs import sweep
from cryo_monai.system_verbs import doctor
from cryo_monai.weight_verbs import fetch_weights, inspect_weights, list_weights, pin_weights


def train(
    bundle: str,
    output_dir: str,
    overlays: str = "",
    resume: bool = False,
    idempotent: bool = False,
    tracking: str = "",
    report: bool = True,
    **ids: str,
) -> None:
    """Train a bundle, score its test split and write the report, all into output_dir.

    Args:
        bundle: bundle folder, such as bundles/subtomogram_classification.
        output_dir: run folder for checkpoints (models/), metrics.json, metrics.csv, tensorboard/ and run.json.
        overlays: comma-separated JSON files that change the recipe, such as configs/quickstart.json.
        resume: go on with the run in output_dir; what it was started with need not be given again.
        idempotent: do what is missing, if anything: begin, go on, or score, and leave the file DONE; for queues, which
            may make the same call again.
        tracking: mlflow keeps losses, metrics and parameters in mlruns.db in output_dir, or at MLFLOW_TRACKING_URI.
        report: False ends after training; evaluate and report do the rest.
        ids: any id of the bundle's train.json: --dataset_dir DIR, --num_classes N (10 in the cryo-ET bundle), --seed,
            --split [3,1,1], --lr, --max_epochs, --batch_size, --device cpu, --cache_device cuda, --nan mean,
            --optimizer @optimizers#adam, --train#random_clips#crop_prob 0 ...
    """
    from cryo_monai.run_evaluation import summarise
    from cryo_monai.runs import train_bundle
    from cryo_monai.workflows import has_workflow

    if idempotent:
        from cryo_monai.completed_runs import complete_run

        complete_run(bundle, output_dir, overlays=split_list(overlays), tracking=tracking, ids=ids)
    else:
        train_bundle(bundle, output_dir, overlays=split_list(overlays), resume=resume, tracking=tracking, ids=ids)
    if not has_workflow(bundle, "evaluate"):
        print(f"best weights: {output_dir}/models/model.pt; begin another training with them: --weights FILE")
    elif report:
        make_report(output_dir)
        print(summarise(output_dir))
    elif idempotent:
        print(f"done: {output_dir}")
    else:
        print(f"best weights: {output_dir}/models/model.pt; score them with: cryo-monai evaluate {output_dir}")


def evaluate(run_dir: str, output_dir: str = "", **ids: str) -> None:
    """Score the test split with the best checkpoint of a run.

    Writes evaluation.json, confusion_matrix.csv, test_predictions.csv and test_features.npz; report makes a page of it.

    Args:
        run_dir: the output_dir of a training.
        output_dir: folder of the numbers, run_dir by default; needed with ids that change what is scored.
        ids: any id of the bundle's evaluate.json, such as --dataset_dir OTHER, --average_axes True, --device cpu.
    """
    from cryo_monai.run_evaluation import evaluate_run, summarise

    evaluate_run(run_dir, output_dir or None, ids=ids)
    print(summarise(output_dir or run_dir))


def classify(
    run_dir: str,
    data: str = "",
    output: str = "",
    particles: str = "",
    tomograms: str = "",
    three_axis: bool = False,
    min_probability: float = 0.0,
    box: int = 0,
    voxel_size: float = 0.0,
    rotate: bool = False,
    invert: bool = False,
    edge: str = "pad",
    rescaling: str = "fourier",
    pixel_size: float = 0.0,
    tomogram_voxel_size: float = 0.0,
    permissive: bool = False,
    **ids: str,
) -> None:
    """Classify volumes, or particles in tomograms, with the best checkpoint of a run.

    Of volumes a CSV is written: path, class name, probabilities. Of particles: the list with classes and probabilities,
    in its own format, probabilities and counts as CSV, points for napari, ChimeraX and ArtiaX, and a picture; and an
    interrupted call is continued by the same call.

    Args:
        run_dir: the output_dir of a training.
        data: a volume, a folder of volumes, or a datalist JSON.
        output: the CSV, predictions.csv in run_dir by default; or the particle list, NAME_classes in run_dir.
        particles: instead of data: RELION 3 to 5 STAR or optimisation set, Warp, STOPGAP, Dynamo, copick, portal
            ndjson, or CSV.
        tomograms: with particles: files and folders; not needed where a RELION 5 project names them.
        three_axis: average over each axis as time.
        min_probability: particles below it are of class unknown.
        box: edge of boxes in voxels; by default as in training.
        voxel_size: of boxes in Å; by default as in training.
        rotate: turn particles back into the pose of the reference, if training did.
        invert: change the sign, if tomograms are bright where training was dark, or the other way.
        edge: boxes that reach beyond the tomogram: pad, skip or error.
        rescaling: fourier or lanczos.
        pixel_size: Å per unit of the list's coordinates; goes before what the list says.
        tomogram_voxel_size: Å; goes before what files say.
        permissive: accept old MRC files.
        ids: any id of the bundle's inference.json, such as --batch_size 8, --device cpu, --num_workers 2.
    """
    from cryo_monai.run_inference import classify_with_run

    if three_axis:
        ids["average_axes"] = "True"
    if bool(data) == bool(particles):
        raise UsageError("classify: give volumes (data), or --particles with --tomograms")
    if data:
        given = {"tomograms": tomograms, "min_probability": min_probability, "box": box, "voxel_size": voxel_size}
        given |= {"rotate": rotate, "invert": invert, "pixel_size": pixel_size, "edge": edge != "pad"}
        given |= {"rescaling": rescaling != "fourier", "tomogram_voxel_size": tomogram_voxel_size}
        if any(given.values()):
            raise UsageError(f"--{next(name for name in given if given[name])}: for --particles, not for volumes")
        if permissive:
            ids["permissive"] = "True"
        print(f"predictions: {classify_with_run(run_dir, data, output or None, ids=ids)}")
        return
    if ids.get("nan", "error") != "error":
        raise UsageError(f"--nan {ids['nan']}: for volumes; voxels around particles have to be finite")
    classify_tomograms(
        run_dir,
        particles,
        output,
        tomograms,
        min_probability=min_probability,
        pixel_size=pixel_size,
        tomogram_voxel_size=tomogram_voxel_size,
        permissive=permissive,
        ids=ids,
        box=box,
        voxel_size=voxel_size,
        rotate=rotate,
        invert=invert,
        edge=edge,
        rescaling=rescaling,
    )


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
    from cryo_monai.run_evaluation import evaluate_run, summarise
    from cryo_monai.run_inference import classify_with_run
    from cryo_monai.runs import has_state, train_bundle

    data = f"{output_dir}/data"
    flags = f"--num_per_class {num_per_class} --clean False --snr {snr} --neighbours 0 --seed {seed}"
    print(f"$ cryo-monai simulate {data} {flags}")
    simulate(data, num_per_class=num_per_class, clean=False, snr=str(snr), neighbours="0", seed=str(seed))
    resume = has_state(output_dir)
    options = f"--report False --overlays {overlays} --dataset_dir {data} --seed {seed}" + (
        " --resume" if resume else ""
    )
    print(f"$ cryo-monai train {bundle} {output_dir} {options}")
    ids = {"dataset_dir": data, "seed": str(seed)}
    train_bundle(bundle, output_dir, overlays=split_list(overlays), resume=resume, ids=ids)
    print(f"$ cryo-monai evaluate {output_dir}")
    evaluate_run(output_dir)
    print(f"$ cryo-monai report {output_dir}")
    make_report(output_dir)
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
        weights: for a bundle: video, image, generated, a name that `weights list` shows, a file, or nothing for random
            weights.
        overlays: for a bundle: comma-separated JSON files, such as configs/backbones/swin3d_t.json.
        seed: of random weights.
        ids: any id of the bundle's inference.json, and --input_range, --inflation.
    """
    from cryo_monai.run_inference import embed_with

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
    "pick": pick,
    "keep": keep,
    "label": label,
    "extract": extract,
    "check": check,
    "control": control,
    "sweep": sweep,
    "budget": budget,
    "pretrain": pretrain,
    "train": train,
    "evaluate": evaluate,
    "report": make_report,
    "compare": compare,
    "explain": explain,
    "classify": classify,
    "score": score,
    "embed": embed,
    "export": export,
    "convert": convert,
    "view": view,
    "doctor": doctor,
    "package": package,
    "trust": trust,
    "quickstart": quickstart,
    "weights": {"list": list_weights, "fetch": fetch_weights, "inspect": inspect_weights, "pin": pin_weights},
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 for errors, 2 for usage, 75 when stopped and saved."""
    return run(VERBS, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
