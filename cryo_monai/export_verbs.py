"""The verb ``cryo-monai export``."""

from __future__ import annotations


def export(run_dir: str, format: str, output: str = "") -> None:
    """Write the network of a run as one file that other programs run: raw volumes in, class probabilities out.

    Intensity scaling, resizing, the channel, mean, std and temperature are inside; batch and volume sizes are free. The
    file is compared with the run's network in float32 before it gets its name; docs/exports.md says how to use it.

    Args:
        run_dir: the output_dir of a training.
        format: onnx, torchscript, torch_export, or safetensors (weights and description only).
        output: the file, exports/model.SUFFIX in run_dir by default. A file that exists is not replaced.
    """
    from cryo_monai.errors import CryoMonaiError
    from cryo_monai.exports import export_run, some_test_volumes
    from cryo_monai.runs import read_run

    read_run(run_dir)
    try:
        volumes = some_test_volumes(run_dir)
        real = f"{len(volumes)} volumes of the test split"
    except CryoMonaiError as error:  # a file can be made without the data of its training
        volumes, real = [], f"none of the test split ({str(error).splitlines()[0]})"
    done = export_run(run_dir, format, output or None, volumes=volumes)
    print(
        f"compared with the run's network on {done.num_random} random batches and {real}: probabilities differ by at "
        f"most {done.difference:.1e} ({done.tolerance:g} is tolerated)"
    )
    print(f"exported: {done.path} ({done.path.stat().st_size / 2**20:.1f} MiB)")
