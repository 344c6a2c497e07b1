"""Clips without files, to pre-train on: generated motion and generated assemblies, labelled, on the device.

Read in this order: `generator` (`ClipGenerator`, clips by number), `fields`, `sprites` and `particles` (its tasks),
`degradation` (what noise and the microscope make of them), `counters` (random numbers), `batches` and `objectives`
(what the bundle ``generated_pretraining`` trains with).
"""

from cryo_monai.generation.batches import ClipNumbers, GeneratedBatches
from cryo_monai.generation.generator import ClipGenerator
from cryo_monai.generation.objectives import GeneratedTasksLoss, OwnTask, task_accuracies

__all__ = ["ClipGenerator", "ClipNumbers", "GeneratedBatches", "GeneratedTasksLoss", "OwnTask", "task_accuracies"]
