"""The verb of pre-training on generated clips."""

from __future__ import annotations

from cryo_monai.command_line import split_list


def pretrain(file: str, output_dir: str, overlays: str = "", resume: bool = False, **ids: str) -> None:
    """Train a network on generated clips, without any data, and write its weights for other trainings to begin from.

    Besides what train writes there are weights.safetensors, for --weights, and weights.json, which says how they were
    made and has their SHA-256. The same command makes them again.

    Args:
        file: the task, such as configs/pretraining/assemblies.json.
        output_dir: run folder.
        overlays: comma-separated JSON files that change the recipe, such as configs/backbones/resnet18.json.
        resume: go on with the run in output_dir, with what it was started with; of a finished one the weights are
            written again.
        ids: any id of the bundle's train.json: --backbone NAME, --clip_size [16,32,32], --seed, --max_epochs, --lr,
            --batch_size, --device cpu ...
    """
    import json
    from pathlib import Path

    from cryo_monai.parallel import is_first
    from cryo_monai.pretrained_weights import bundle_of_task, overlays_of_task, write_weights
    from cryo_monai.runs import train_bundle

    bundle = bundle_of_task(file)
    chosen = overlays_of_task(file, output_dir, split_list(overlays), resume=resume)
    train_bundle(bundle, output_dir, overlays=chosen, resume=resume, ids=ids)
    if not is_first():
        return
    written = write_weights(output_dir)
    note = json.loads(Path(written).with_suffix(".json").read_text())
    accuracy = note["metrics"].get("val_accuracy")
    scored = (
        ""
        if accuracy is None
        else f"; validation accuracy {100 * accuracy:.2f} % after epoch {note['metrics']['epoch']}"
    )
    print(f"weights: {written}, {note['bytes'] / 1e6:.1f} MB{scored}")
    print(f"SHA-256: {note['sha256']}")
    print(f"use it with: --weights {written}")
