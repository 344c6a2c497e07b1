"""What a network looks at: class activation maps on the grid of the volume, and how far to believe them.

Read in this order: `maps` (a network and volumes to maps), with `taps` (feature maps and gradients of any layer) and
`cells` (where a layer's cells lie in the clip); `faithfulness` and `masks` (tests of maps); `overlays`, `pictures`
and `faithfulness_pictures` (files); `volume_explanations`, `records`, `explained_runs` and `explaining` (a run on a
data set).
"""

from __future__ import annotations

from cryo_monai.explanations.explaining import explain_run
from cryo_monai.explanations.faithfulness import hiding_curves, mass_inside
from cryo_monai.explanations.maps import explain_volumes

__all__ = ["explain_run", "explain_volumes", "hiding_curves", "mass_inside"]
