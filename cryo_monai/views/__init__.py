"""Files that napari and ChimeraX open directly: volumes, points by class, and a scene that puts them together."""

from __future__ import annotations

from cryo_monai.views.particle_views import view_particles
from cryo_monai.views.scenes import Scene
from cryo_monai.views.sources import write_view
from cryo_monai.views.volume_views import view_explanations, view_volume

__all__ = ["Scene", "view_explanations", "view_particles", "view_volume", "write_view"]
