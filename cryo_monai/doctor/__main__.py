"""``python -m cryo_monai.doctor``: the same as ``cryo-monai doctor``, where not even that starts."""

from __future__ import annotations

import argparse
import sys

from cryo_monai.doctor.reporting import report_findings


def main() -> int:
    """Examine, print, and return the exit code: 1 when something that is needed does not pass."""
    parser = argparse.ArgumentParser(prog="python -m cryo_monai.doctor")
    parser.add_argument("--run", default="", help="a run or a bundle that should be loadable")
    parser.add_argument("--json", default="", help="file that gets the same, machine-readable")
    arguments = parser.parse_args()
    return 0 if report_findings(arguments.run, arguments.json) else 1


if __name__ == "__main__":
    sys.exit(main())
