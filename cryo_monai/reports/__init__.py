"""Pages that stand alone: the report of a run, and the comparison of several.

`run_reports` and `comparisons` put the pages together, out of what `contents` and `compared_runs` read, figures
(`figures`, `curve_figures`, `epoch_figures` on the `canvases` of all), `mistakes`, the interactive `feature_maps` with
their `thumbnails`, and sentences (`texts`, `comparison_texts`); `pages` fills `templates/`.
"""

from __future__ import annotations

from cryo_monai.reports.comparisons import write_comparison
from cryo_monai.reports.run_reports import write_report

__all__ = ["write_comparison", "write_report"]
