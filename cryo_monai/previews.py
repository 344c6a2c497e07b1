"""Pictures of simulated data, to look at before hours are spent on them."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cryo_monai.files import atomic_write_bytes

if TYPE_CHECKING:
    from cryo_monai.simulation import SubtomogramSimulator

COLUMNS = (
    "clean, slice xy",
    "clean, projection along z",
    "noisy, slice xy",
    "noisy, slice xz",
    "noisy, projection along z",
    "power spectrum, kx kz",
)


def power_spectrum_xz(volume: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Logarithm of the mean power over ky, `(kz, kx)`, zero frequency in the middle: the missing wedge is dark."""
    power = np.abs(np.fft.fftn(volume - volume.mean())) ** 2
    spectrum = np.fft.fftshift(power.mean(axis=1))
    return np.asarray(np.log10(spectrum + 1e-9 * spectrum.max()))


def write_preview(simulator: SubtomogramSimulator, path: str | os.PathLike[str]) -> None:
    """Write a PNG sheet with one volume of every class.

    Parameters
    ----------
    simulator : SubtomogramSimulator
        Makes the first volume of each class, the same as in the data set.
    path : path
        The PNG; its folder is created.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    classes = range(simulator.num_classes)
    figure = Figure(figsize=(1.5 * len(COLUMNS) + 0.8, 1.5 * len(classes) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(classes), len(COLUMNS), squeeze=False)
    for label in classes:
        batch = simulator.simulate(label, [0])
        volume, clean = batch.volumes[0].cpu().numpy(), batch.clean[0].cpu().numpy()
        middle = volume.shape[0] // 2
        pictures = (
            clean[middle],
            clean.sum(axis=0),
            volume[middle],
            volume[:, middle],
            volume.sum(axis=0),
            power_spectrum_xz(volume),
        )
        for column, picture in enumerate(pictures):
            axis = axes[label, column]
            low = np.percentile(picture, 1) if column < len(COLUMNS) - 1 else picture.max() - 5
            axis.imshow(picture, cmap="gray", origin="lower", vmin=low, vmax=np.percentile(picture, 99.5))
            axis.set_xticks([])
            axis.set_yticks([])
            if label == 0:
                axis.set_title(COLUMNS[column], fontsize=7)
        axes[label, 0].set_ylabel(simulator.class_names[label], fontsize=7)
    settings = simulator.settings
    figure.suptitle(
        f"{settings.mode}, SNR {settings.snr:g}, {settings.voxel_size:g} Å voxels, {settings.neighbours} neighbours; "
        "in noisy volumes density is dark",
        fontsize=8,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": "cryo-monai"})
    atomic_write_bytes(path, buffer.getvalue())
