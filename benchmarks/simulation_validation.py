"""Does the simulator do what it says? The numbers and pictures of docs/simulation.md.

    python benchmarks/simulation_validation.py --models FOLDER --maps FOLDER

FOLDER of models holds 3j9i and 1aon as ID.pdb.gz or ID.cif.gz (fetched from the PDB otherwise); that of maps holds
the real average hsp60.mrc (Chlamydomonas mitochondria, CC0, rdrighetto/ChlamyAnnotations); without it that comparison
is left out. Writes benchmarks/results/simulation_validation-cpu.json and docs/pictures/simulation_*.png.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from report import machine, write_results

from cryo_monai.previews import write_preview
from cryo_monai.rotations import rotation_matrices
from cryo_monai.simulation import (
    SimulationSettings,
    Structure,
    SubtomogramSimulator,
    load_structures,
    read_preset,
)
from cryo_monai.simulation.imaging import TiltSeriesMicroscope, draw_exposure
from cryo_monai.simulation.microscope import contrast_transfer, missing_wedge_mask
from cryo_monai.simulation.packing import Packing
from cryo_monai.simulation.projection import images_of
from cryo_monai.simulation.scenes import SceneRenderer
from cryo_monai.simulation.structures import structure_of_map
from cryo_monai.simulation.writing import full_mask

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
BOX, VOXEL = 32, 10.0
CLEAN = SimulationSettings(snr=float("inf"))
# No fading, no shifts, and a transfer of -1 at all frequencies.
IDEAL = replace(
    CLEAN,
    dose_per_tilt=0.0,
    alignment_error=0.0,
    amplitude_contrast=1.0,
    defocus_um=0.001,
    defocus_spread_um=0.0,
    defocus_tilt_um=0.0,
    spherical_aberration_mm=0.0,
)


def shell_index(size: int) -> np.ndarray:
    """Shell of every coefficient of a cube's full Fourier transform, zero frequency first."""
    axis = np.fft.fftfreq(size, 1 / size)
    return np.rint(np.linalg.norm(np.stack(np.meshgrid(axis, axis, axis, indexing="ij")), axis=0)).astype(int)


def shell_means(spectrum: np.ndarray) -> np.ndarray:
    """Mean over shells 0 to half the box."""
    shells = shell_index(spectrum.shape[0])
    return np.array([spectrum[shells == k].mean() for k in range(spectrum.shape[0] // 2 + 1)])


def shell_correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Fourier-shell correlation of two cubes."""
    f, g = np.fft.fftn(one), np.fft.fftn(other)
    return np.real(shell_means(f * g.conj())) / np.sqrt(
        shell_means(np.abs(f) ** 2) * shell_means(np.abs(g) ** 2) + 1e-20
    )


def resolution_at(fsc: np.ndarray, threshold: float, size: int, voxel: float) -> float:
    """Å where a Fourier-shell correlation first falls below a threshold."""
    below = np.flatnonzero(fsc[1:] < threshold)
    if not len(below):
        return 2 * voxel
    k = below[0] + 1
    last, first = fsc[k - 1], fsc[k]
    return float(size * voxel / (k - 1 + (last - threshold) / (last - first)))


def reconstruction(structures: list[Structure], axis: Axes) -> dict[str, Any]:
    """FSC of noise-free reconstructions with the scenes that were imaged."""
    cases = {
        "all tilts by 1°, ideal transfer": replace(IDEAL, max_tilt_deg=89.0, tilt_step_deg=1.0),
        "±60° by 3°, ideal transfer": IDEAL,
        "the default microscope": CLEAN,
    }
    found = {}
    for name, settings in cases.items():
        batch = SubtomogramSimulator(structures, settings).simulate(0, range(8))
        pairs = zip(batch.volumes.numpy(), batch.clean.numpy(), strict=True)
        fsc = np.mean([shell_correlation(-volume, clean) for volume, clean in pairs], axis=0)
        axis.plot(np.arange(1, 17) / (BOX * VOXEL), fsc[1:], "o-", ms=3, label=name)
        found[name] = [round(float(v), 4) for v in fsc[1:]]
    axis.set(title="noise-free reconstruction against truth", xlabel="1/Å", ylabel="FSC", ylim=(0, 1.05))
    axis.legend(fontsize=6)
    return found


def anisotropy(structures: list[Structure], axis: Axes) -> dict[str, Any]:
    """Transfer of power against the angle from the plane of the untilted image, about the tilt axis."""
    batch = SubtomogramSimulator(structures, IDEAL).simulate(0, range(32))
    power = (np.abs(np.fft.fftn(batch.volumes.numpy(), axes=(1, 2, 3))) ** 2).mean(0)
    truth = (np.abs(np.fft.fftn(batch.clean.numpy(), axes=(1, 2, 3))) ** 2).mean(0)
    frequency = np.fft.fftfreq(BOX, 1 / BOX)
    kz, _, kx = np.meshgrid(frequency, frequency, frequency, indexing="ij")
    angle = np.rad2deg(np.arctan2(np.abs(kz), np.abs(kx)))
    plane = np.hypot(kz, kx)
    chosen = (plane > 5) & (shell_index(BOX) < 12)
    bins = np.arange(0, 95, 5)
    ratio = []
    for low, high in itertools.pairwise(bins):
        inside = chosen & (angle >= low) & ((angle < high) | (high == 90))
        ratio.append(np.median(power[inside] / truth[inside]))
    ratio = np.array(ratio) / np.mean(ratio[:10])
    axis.plot(bins[:-1] + 2.5, ratio, "o-", ms=3)
    axis.axvline(60, color="gray", ls=":")
    axis.set(
        title="power that is kept, by direction", xlabel="angle from the untilted plane (°)", ylabel="relative power"
    )
    return {"angle_deg": (bins[:-1] + 2.5).tolist(), "relative_power": np.round(ratio, 4).tolist()}


def transfer_zeros(axis: Axes) -> dict[str, Any]:
    """Zeros of the images of a point, where theory puts them."""
    found = {}
    pixel, size = 4.0, 128
    for defocus in (2.0, 4.0, 6.0):
        settings = replace(
            CLEAN, voxel_size=pixel, defocus_um=defocus, defocus_spread_um=0.0, defocus_tilt_um=0.0, alignment_error=0.0
        )
        scope = TiltSeriesMicroscope(settings, (16, size, size), (8, 8, 8))
        point = torch.zeros(1, 16, size, size)
        point[0, 8, size // 2, size // 2] = 1
        exposure = draw_exposure(settings, scope.num_tilts, np.random.default_rng(0))
        image = images_of(scope.noise_free_images(point, [exposure]), width=scope.width)[0, scope.num_tilts // 2]
        amplitude = torch.fft.rfft(image.sum(1)).real.numpy() * (-1.0) ** np.arange(size // 2 + 1)
        frequency = np.arange(size // 2 + 1) / (size * pixel)
        crossing = np.flatnonzero(np.diff(np.sign(amplitude[1:]))) + 1
        between = amplitude[crossing] / (amplitude[crossing] - amplitude[crossing + 1])
        measured = (crossing + between) / (size * pixel)
        fine = torch.linspace(1e-3, float(frequency[-1]), 100_000, dtype=torch.float64)
        theory = contrast_transfer(fine**2, defocus_um=defocus).numpy()
        zeros = fine.numpy()[:-1][np.diff(np.sign(theory)) != 0]
        axis.plot(frequency, amplitude / np.abs(amplitude).max(), label=f"{defocus:g} µm")
        axis.plot(zeros, np.zeros_like(zeros), "k|", ms=8)
        count = min(len(zeros), len(measured))
        found[f"{defocus:g} um"] = {
            "measured_1_per_A": np.round(measured[:count], 5).tolist(),
            "theory_1_per_A": np.round(zeros[:count], 5).tolist(),
        }
    axis.set(title="image of a point; | zeros of theory", xlabel="1/Å", ylabel="relative amplitude")
    axis.legend(fontsize=6)
    return found


def aligned_average(simulator: SubtomogramSimulator, label: int, count: int) -> np.ndarray:
    """Average of volumes turned back by their true poses, each Fourier coefficient over those that measured it."""
    size = simulator.settings.box
    limit = simulator.settings.max_tilt_deg
    wedge = full_mask(missing_wedge_mask((size,) * 3, max_tilt_deg=limit).numpy(), size).astype(np.float32)
    steps = torch.arange(size, dtype=torch.float32) - size // 2
    grid = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"), dim=-1).reshape(-1, 3)

    def turned(volume: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        where = ((points + size // 2) * (2 / (size - 1)) - 1).flip(-1).reshape(1, size, size, size, 3)
        return F.grid_sample(volume[None, None], where, align_corners=True)[0, 0]

    total, weight = torch.zeros((size,) * 3, dtype=torch.complex64), torch.zeros((size,) * 3)
    for start in range(0, count, 10):
        batch = simulator.simulate(label, range(start, min(start + 10, count)))
        for volume, truth in zip(batch.volumes, batch.truth, strict=True):
            matrix = torch.tensor(rotation_matrices(truth["quaternion_wzyx"]), dtype=torch.float32)
            # The reference's point p lies at R p + shift in the volume; its frequency k at R k.
            back = turned(volume, grid @ matrix.T + torch.tensor(truth["shift_voxels_zyx"], dtype=torch.float32))
            measured = turned(torch.from_numpy(wedge), grid @ matrix.T)
            total += torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(back))) * measured
            weight += measured
    average = torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(total / weight.clamp_min(1.0)))).real
    return -average.numpy()


def alone(structure: Structure, size: int) -> np.ndarray:
    """Render a structure in its reference pose."""
    packing = Packing(np.array([[0]]), np.array([[[1.0, 0, 0, 0]]]), np.zeros((1, 1, 3)), np.zeros(0, np.float32))
    return SceneRenderer([structure]).render(packing, (size,) * 3)[0].numpy()


def soft_ball(size: int, radius: float) -> np.ndarray:
    """1 inside a radius in voxels, with a cosine edge of three voxels."""
    steps = np.arange(size) - size // 2
    distance = np.linalg.norm(np.stack(np.meshgrid(steps, steps, steps, indexing="ij")), axis=0)
    edge = np.clip((distance - radius) / 3, 0, 1)
    return 0.5 + 0.5 * np.cos(np.pi * edge)


def averages(structures: list[Structure], axes: tuple[Axes, Axes], count: int) -> dict[str, Any]:
    """How well noisy subtomograms, aligned by their truth, average to the structure."""
    found = {}
    for snr in (0.1, 0.03):
        simulator = SubtomogramSimulator(structures, SimulationSettings(snr=snr))
        for label, structure in enumerate(structures):
            average = aligned_average(simulator, label, count)
            mask = soft_ball(BOX, structure.radius / VOXEL + 1)
            fsc = shell_correlation(average * mask, alone(structure, BOX) * mask)
            name = f"{structure.name}, SNR {snr:g}"
            found[name] = {
                "volumes": count,
                "fsc": np.round(fsc[1:], 4).tolist(),
                "resolution_at_0.5_A": round(resolution_at(fsc, 0.5, BOX, VOXEL), 1),
            }
            axes[0].plot(np.arange(1, 17) / (BOX * VOXEL), fsc[1:], label=name)
            if snr == 0.1 and label == 0:
                axes[1].imshow(average[BOX // 2], cmap="gray", origin="lower")
                axes[1].set(title=f"average of {count}, {structure.name}", xticks=[], yticks=[])
    axes[0].axhline(0.5, color="gray", ls=":")
    axes[0].set(title=f"average of {count} aligned against truth", xlabel="1/Å", ylabel="FSC", ylim=(0, 1.05))
    axes[0].legend(fontsize=6)
    return found


def radial_power(models: str, maps: str, axis: Axes, count: int) -> dict[str, Any]:
    """Fall-off of a simulated average of GroEL-GroES beside the real average of a relative (hsp60)."""
    voxel, size = 7.84, 48
    real = structure_of_map(Path(maps) / "hsp60.mrc", voxel_size=voxel, resolution=voxel)
    model = load_structures(["1aon"], voxel_size=voxel, resolution=2 * voxel, structure_dir=models or None)
    settings = SimulationSettings(voxel_size=voxel, box=size, snr=0.1, neighbours=2)
    average = aligned_average(SubtomogramSimulator(model, settings), 0, count)
    found: dict[str, Any] = {}
    curves = {
        "real average, hsp60": alone(real, size) * soft_ball(size, real.radius / voxel + 1),
        "1aon, density": alone(model[0], size) * soft_ball(size, model[0].radius / voxel + 1),
        f"1aon, average of {count} simulated": average * soft_ball(size, model[0].radius / voxel + 1),
    }
    frequency = np.arange(1, size // 2) / (size * voxel)
    for name, volume in curves.items():
        power = shell_means(np.abs(np.fft.fftn(volume)) ** 2)[1 : size // 2]
        power = power / power[(frequency > 1 / 100) & (frequency < 1 / 60)].mean()
        axis.semilogy(frequency, power, label=name)
        band = (frequency > 1 / 80) & (frequency < 1 / 30)
        slope = np.polyfit(frequency[band] ** 2, np.log(power[band]), 1)[0]
        found[name] = {"power": [float(f"{p:.3g}") for p in power], "effective_b_factor_A2": round(float(-2 * slope))}
    axis.set(title="radial power, relative", xlabel="1/Å", ylabel="power")
    axis.legend(fontsize=6)
    return found


def xulab_statistics(models: str) -> dict[str, Any]:
    """Statistics of volumes as configs/simulation/paper.json makes them, of the ten models of shared_ten.json."""
    folder = Path(__file__).resolve().parent.parent / "configs" / "simulation"
    settings = read_preset(folder / "paper.json").settings
    entries = read_preset(folder / "shared_ten.json").structures
    structures = load_structures(
        entries, voxel_size=VOXEL, resolution=settings.low_pass_resolution, structure_dir=models or None
    )
    simulator = SubtomogramSimulator(structures, settings)
    batches = [simulator.simulate(label, range(16)) for label in range(len(structures))]
    volumes = torch.cat([batch.volumes for batch in batches]).numpy()
    deviations = volumes.std(axis=(1, 2, 3))
    power = np.mean([shell_means(np.abs(np.fft.fftn(volume)) ** 2) for volume in volumes], axis=0)
    mask = full_mask(missing_wedge_mask((BOX,) * 3, max_tilt_deg=settings.max_tilt_deg).numpy(), BOX)
    ratios = [truth["snr_measured"] / settings.snr for batch in batches for truth in batch.truth]
    return {
        "volumes": len(volumes),
        "standard_deviation_5_50_95_percent": np.percentile(deviations, [5, 50, 95]).round(2).tolist(),
        "measured_over_nominal_snr": round(float(np.mean(ratios)), 3),
        "wedge_fraction_kept": round(float(mask.mean()), 4),
        "relative_power_of_shells_1_to_16": [float(f"{p:.2g}") for p in power[1:] / power[1:].max()],
    }


def main(models: str = "", maps: str = "", count: int = 200, output: str = "") -> None:
    """Measure everything, and write numbers and pictures."""
    structures = load_structures(["3j9i", "1aon"], voxel_size=VOXEL, resolution=2 * VOXEL, structure_dir=models or None)
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(2, 3)
    result: dict[str, Any] = {"machine": machine(torch.device("cpu"))}
    result["reconstruction_fsc"] = reconstruction(structures, axes[0, 0])
    result["anisotropy"] = anisotropy(structures, axes[0, 1])
    result["transfer_zeros"] = transfer_zeros(axes[0, 2])
    result["xulab"] = xulab_statistics(models)
    result["averages"] = averages(structures, (axes[1, 0], axes[1, 1]), count)
    if maps:
        result["radial_power"] = radial_power(models, maps, axes[1, 2], count)
    PICTURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURES / "simulation_validation.png", dpi=110, metadata={"Software": "cryo-monai"})
    write_preview(SubtomogramSimulator(structures, SimulationSettings(snr=0.3)), PICTURES / "simulation_preview.png")
    write_results("simulation_validation", torch.device("cpu"), result, output)


if __name__ == "__main__":
    fire.Fire(main)
