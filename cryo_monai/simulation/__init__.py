"""A simulator of cryo-ET: structures, crowded scenes, a microscope, and data sets with their truth."""

from cryo_monai.simulation.loading import StructureEntry, load_structures
from cryo_monai.simulation.presets import Preset, read_preset
from cryo_monai.simulation.settings import SimulationSettings, settings_from
from cryo_monai.simulation.structures import Structure
from cryo_monai.simulation.subtomograms import SimulatedBatch, SubtomogramSimulator
from cryo_monai.simulation.tomograms import write_tomograms
from cryo_monai.simulation.writing import BUILT_IN, load_classes, write_dataset

__all__ = [
    "BUILT_IN",
    "Preset",
    "SimulatedBatch",
    "SimulationSettings",
    "Structure",
    "StructureEntry",
    "SubtomogramSimulator",
    "load_classes",
    "load_structures",
    "read_preset",
    "settings_from",
    "write_dataset",
    "write_tomograms",
]
