"""The model card of a package: what the network is for, how good it was measured to be, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryo_monai.runs import read_json

_NAMES = {"accuracy": "accuracy", "auc": "AUC", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1"}


def write_model_card(
    bundle: Path, metadata: Mapping[str, Any], evaluation: Mapping[str, Any], record: Mapping[str, Any]
) -> None:
    """Write ``docs/README.md`` of a packaged bundle.

    Parameters
    ----------
    bundle : path
        The package, with its configurations.
    metadata : mapping
        The package's.
    evaluation : mapping
        Of the run, as in ``evaluation.json``.
    record : mapping
        Of the run, as in ``run.json``.
    """
    recipe = read_json(bundle / "configs" / "train.json")
    parts = [
        f"# {metadata['name']}\n\n{metadata['description']}",
        f"## Intended use\n\n{metadata['intended_use']}",
        _data(metadata, evaluation),
        _performance(evaluation),
        _training(recipe, metadata),
        _use(bundle.name, recipe["num_classes"]),
        _limits(evaluation),
        _provenance(metadata, record),
        f"# License\n\nOf this bundle: `LICENSE`; of data: `docs/data_license.txt`.\n\n{metadata['copyright']}",
    ]
    references = metadata.get("references", [])
    if references:
        parts.append("# References\n\n" + "\n".join(f"- {text}" for text in references))
    (bundle / "docs" / "README.md").write_text("\n\n".join(parts) + "\n")


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _data(metadata: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    data = metadata["training_data"]
    lines = [f"- Source: {metadata['data_source']}"]
    if data.get("num_volumes"):
        counts = ", ".join(f"{count} {split}" for split, count in data["num_volumes"].items())
        lines.append(f"- Volumes: {counts}")
    if data.get("box"):
        lines.append(f"- Size (z, y, x): {' × '.join(map(str, data['box']))} voxels")
    if data.get("voxel_size"):
        lines.append(f"- Voxel size: {data['voxel_size']} Å")
    if data.get("contrast"):
        lines.append(f"- Contrast: particles are {data['contrast']['density']} on their surroundings")
    lines.append("- Input: one channel, any box size, any intensity range; MRC, NIfTI or NPY")
    lines.append(f"- Classes: {', '.join(evaluation['per_class'])}")
    return "## Data\n\n" + "\n".join(lines)


def _performance(evaluation: Mapping[str, Any]) -> str:
    intervals = evaluation["intervals"]
    rows = [[name, _number(evaluation[key]), _range(intervals[key])] for key, name in _NAMES.items()]
    classes = [
        [name, *(_number(values[key]) for key in ("precision", "recall", "f1", "auc")), str(values["support"])]
        for name, values in evaluation["per_class"].items()
    ]
    heading = f"{evaluation['num_volumes']} volumes of the {evaluation['split']} split, which nothing was chosen by."
    chance = f"Always answering the most frequent class gives an accuracy of {evaluation['chance']['accuracy']:.3f}."
    chance += f" Probabilities are calibrated, with temperature {evaluation['temperature']:.3f}."
    level = f"{100 * intervals['level']:.0f} % interval"
    return "\n\n".join(
        [
            f"## Performance\n\n{heading} {chance}",
            _table(["metric", "value", level], rows),
            _table(["class", "precision", "recall", "F1", "AUC", "volumes"], classes),
        ]
    )


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _range(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _training(recipe: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    start = metadata["initialisation"].get("weights")
    origin = "random weights"
    if start:
        origin = f"`{start}` (SHA-256 {metadata['initialisation'].get('sha256')})"
        if recipe["weights"] is None:
            origin += ", which is not part of this package: give it with `--weights` to train again from it"
    lines = [
        f"- Backbone: `{recipe['backbone']}`, options `{recipe['backbone_options']}`",
        f"- Clip (depth, height, width): {' × '.join(map(str, recipe['clip_size']))}, time axis {recipe['time_axis']}",
        f"- Initialisation: {origin}",
        f"- Optimiser: `{recipe['optimizer']}`, learning rate {recipe['lr']}, weight decay {recipe['weight_decay']}",
        f"- Schedule: {recipe['max_epochs']} epochs, batch {recipe['batch_size']}; the best on validation is kept",
    ]
    return "## Training configuration\n\nThe whole recipe is `configs/train.json`.\n\n" + "\n".join(lines)


def _use(name: str, num_classes: int) -> str:
    return f"""## Commands

Needs the package `cryo-monai` (`pip install cryo-monai`). In this folder:

```bash
python -m monai.bundle run inference --config_file configs/inference.json --dataset_dir FOLDER_OF_VOLUMES
python -m monai.bundle run training --config_file configs/train.json --dataset_dir DATA \\
    --weights models/model.pt --output_dir FURTHER --ckpt_dir FURTHER/models
python -m monai.bundle run evaluating --config_file "['configs/train.json','configs/evaluate.json']" --dataset_dir DATA
```

Inference writes `output/predictions.csv`: path, class name, {num_classes} probabilities. The second command trains on
from these weights, into a folder of its own. `cryo-monai classify` takes the folder in the place of a run. In Python:

```python
import monai.bundle

network = monai.bundle.load("{name}", bundle_dir="FOLDER_ABOVE_THIS_ONE", source="github")
scores = network.eval()(volumes)  # (B, 1, z, y, x) -> scores before softmax, (B, {num_classes})
```"""


def _limits(evaluation: Mapping[str, Any]) -> str:
    count = len(evaluation["per_class"])
    return (
        f"## Limitations\n\nResearch use. The network calls everything one of its {count} classes. The numbers above "
        "hold for volumes made as those of the test split were; other microscopes, voxel sizes, pickers and "
        "reconstructions are other data."
    )


def _provenance(metadata: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    versions = {
        "cryo-monai": metadata["required_packages_version"].get("cryo-monai"),
        "MONAI": metadata["monai_version"],
    }
    versions |= {"PyTorch": metadata["pytorch_version"], "NumPy": metadata["numpy_version"]}
    listed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return (
        f"## Provenance\n\n- Version {metadata['version']} of this bundle; made with {listed}\n"
        f"- SHA-256 of `models/model.pt`: `{metadata['weights_sha256']}`\n"
        "- All files: `sha256sum --check SHA256SUMS`"
    )
