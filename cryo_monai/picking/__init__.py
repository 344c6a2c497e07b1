"""From tomograms to lists of particles: blobs, ranking by templates, and a sheet to choose by eye."""

from cryo_monai.picking.blobs import Peaks, far_apart, pick_blobs, suppress
from cryo_monai.picking.ranking import Ranking, Selection, rank_by_templates, top_per_class
from cryo_monai.picking.regions import ArrayTomogram, Tomogram
from cryo_monai.picking.reviews import read_review, write_review
from cryo_monai.picking.rotations import rotation_grid
from cryo_monai.picking.templates import Template, templates_from

__all__ = [
    "ArrayTomogram",
    "Peaks",
    "Ranking",
    "Selection",
    "Template",
    "Tomogram",
    "far_apart",
    "pick_blobs",
    "rank_by_templates",
    "read_review",
    "rotation_grid",
    "suppress",
    "templates_from",
    "top_per_class",
    "write_review",
]
