"""A simulator of cryo-ET: structures, crowded scenes, a microscope, and data sets with their truth."""

from cryo_monai.simulation.loading import load_structures
from cryo_monai.simulation.settings import SimulationSettings, read_preset, settings_from
from cryo_monai.simulation.structures import Structure
from cryo_monai.simulation.subtomograms import SimulatedBatch, SubtomogramSimulator
from cryo_monai.simulation.tomograms import write_tomograms
from cryo_monai.simulation.writing import BUILT_IN, load_classes, write_dataset

__all__ = [
    "BUILT_IN",
    "SimulatedBatch",
    "SimulationSettings",
    "Structure",
    "SubtomogramSimulator",
    "load_classes",
    "load_structures",
    "read_preset",
    "settings_from",
    "write_dataset",
    "write_tomograms",
]
