"""Pages that stand alone: the report of a run, the comparison of several, and the results of a sweep.

`run_reports` and `comparisons` put the pages together, out of what `contents` and `compared_runs` read, figures
(`figures`, `curve_figures`, `epoch_figures` on the `canvases` of all), `mistakes`, the interactive `feature_maps` with
their `thumbnails`, and sentences (`texts`, `comparison_texts`); `pages` fills `templates/`.
`sweep_pages` does so for sweeps, with `sweep_contents` and `sweep_figures`.
"""

from __future__ import annotations

from cryo_monai.reports.comparisons import write_comparison
from cryo_monai.reports.run_reports import write_report
from cryo_monai.reports.sweep_pages import write_sweep_page

__all__ = ["write_comparison", "write_report", "write_sweep_page"]
