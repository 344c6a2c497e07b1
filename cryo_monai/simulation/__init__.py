"""Simulated cryo-ET subtomograms of built-in macromolecular assemblies."""

from cryo_monai.simulation.microscope import ctf_3d, missing_wedge_mask
from cryo_monai.simulation.assemblies import ASSEMBLIES, Assembly, render_density, symmetry_rotations
from cryo_monai.simulation.subtomograms import SimulationSettings, simulate_batch, write_dataset

__all__ = [
    "ASSEMBLIES",
    "Assembly",
    "SimulationSettings",
    "ctf_3d",
    "missing_wedge_mask",
    "render_density",
    "simulate_batch",
    "symmetry_rotations",
    "write_dataset",
]
