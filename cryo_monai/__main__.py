"""Command line: ``cryo-monai VERB ...`` or ``python -m cryo_monai VERB ...``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import fire
import fire.decorators

# Where Fire keeps how to parse a verb's arguments; under its own name it would be listed in every help.
fire.decorators.FIRE_METADATA = "_fire_metadata"


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
    from cryo_monai.simulation.structures import assemblies_by_name

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

    train_bundle(bundle, output_dir, overlays=_list(overlays), resume=resume, ids=ids)
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
    train_bundle(bundle, output_dir, overlays=_list(overlays), resume=resume, ids=ids)
    print(f"$ cryo-monai evaluate {output_dir}")
    evaluate_run(output_dir)
    print(f"$ cryo-monai classify {output_dir} {data}/dataset.json")
    classify_with_run(output_dir, f"{data}/dataset.json")
    print(summarise(output_dir))


VERBS: dict[str, Callable[..., None]] = {
    "simulate": simulate,
    "train": train,
    "evaluate": evaluate,
    "classify": classify,
    "quickstart": quickstart,
}


class UsageError(Exception):
    """A command line that does not fit its verb."""


def _list(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _refuse_unknown_flags(verb: Callable[..., None], arguments: list[str]) -> None:
    """Fire runs a function first and rejects a flag afterwards: look at the flags before."""
    parameters = inspect.signature(verb).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for argument in arguments:
        name = argument.lstrip("-").partition("=")[0].replace("-", "_")
        if argument.startswith("--") and name not in parameters and name != "help":
            near = get_close_matches(name, parameters, n=1)
            raise UsageError(f"{argument}: no such option" + (f"; did you mean --{near[0]}?" if near else ""))


def _converted(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb its arguments as its annotations say; Fire would guess types from how a text looks."""
    parameters = inspect.signature(verb).parameters

    def call(*args: str, **kwargs: str) -> None:
        bound = inspect.signature(verb).bind(*args, **kwargs)
        given = {k: v for k, v in bound.arguments.items() if parameters[k].kind is not inspect.Parameter.VAR_KEYWORD}
        rest = {k: v for k, v in kwargs.items() if k not in given}
        verb(**{name: _convert(name, value, str(parameters[name].annotation)) for name, value in given.items()}, **rest)

    call.__name__, call.__doc__ = verb.__name__, verb.__doc__
    call.__signature__ = inspect.signature(verb)  # type: ignore[attr-defined]
    wrapped: Callable[..., None] = fire.decorators.SetParseFn(str)(call)
    return wrapped


def _convert(name: str, value: Any, annotation: str) -> Any:
    if not isinstance(value, str):
        return value
    if annotation == "bool":
        known = {"true": True, "false": False}
        if value.lower() not in known:
            raise UsageError(f"--{name} {value}: give True or False")
        return known[value.lower()]
    try:
        return {"int": int, "float": float}.get(annotation, str)(value)
    except ValueError:
        raise UsageError(f"--{name} {value}: not a number") from None


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 for errors, 2 for usage, 75 when stopped and saved."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments and arguments[0] in VERBS:
            _refuse_unknown_flags(VERBS[arguments[0]], arguments[1:])
        fire.Fire({name: _converted(verb) for name, verb in VERBS.items()}, command=arguments, name="cryo-monai")
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        from cryo_monai.errors import user_error

        cause = user_error(error)
        if cause is None:
            raise
        print(f"error: {cause}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
