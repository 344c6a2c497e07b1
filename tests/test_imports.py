"""The package's shape: imports go one way, nothing happens on import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cryo_monai

PACKAGE = Path(cryo_monai.__file__).parent
# Each module may import from its own group and those named here. Data and network do not know each other.
GROUPS = {
    "ground": ["errors", "files", "folders", "filters", "fetching", "colours", "trusts"],
    "data": [
        "mrc_header",
        "mrc",
        "mrc_reader",
        "montages",
        "volumes",
        "volume_caches",
        "volume_parts",
        "datasets",
        "splits",
        "label_fractions",
        "datalists",
        "medmnist3d",
        "listings",
        "rotations",
        "simulation",
        "generation",
        "particles",
        "tomogram_names",
        "tomograms",
        "locations",
        "resampling",
        "contrasts",
        "boxes",
        "backgrounds",
        "box_files",
        "extraction",
        "picking",
        "picks",
        "reviewing",
        "matching",
        "points",
        "leakage",
        "audit_reports",
        "audits",
        "controls",
        "conversions",
        "views",
    ],
    "network": [
        "clips",
        "backbones",
        "networks",
        "weight_records",
        "downloads",
        "weight_files",
        "inflation",
        "recognition",
        "memory",
        "weights",
    ],
    "run": [
        "calibration",
        "intervals",
        "metrics",
        "evaluations",
        "history",
        "parallel",
        "rank_norms",
        "handlers",
        "inferers",
        "fine_tuning",
        "checkpoints",
        "annotations",
        "workflows",
        "parts",
        "embeddings",
        "tomogram_classes",
        "tracking",
        "runs",
        "run_evaluation",
        "pretrained_weights",
        "completed_runs",
        "run_inference",
        "exports",
        "run_warnings",
        "packaged_recipes",
        "model_cards",
        "packages",
        "control_runs",
        "sweeps",
        "sweep_results",
        "searches",
        "projections",
        "separability",
        "significance",
        "budgets",
        "doctor",
    ],
    "show": [
        "previews",
        "particle_pictures",
        "reports",
        "explanations",
        "tensorboard_pictures",
    ],
    "command": [
        "command_line",
        "weight_verbs",
        "simulation_verbs",
        "pick_verbs",
        "particle_verbs",
        "dataset_verbs",
        "report_verbs",
        "export_verbs",
        "budget_verbs",
        "pretraining_verbs",
        "sweep_verbs",
        "search_verbs",
        "release_verbs",
        "conversion_verbs",
        "system_verbs",
        "__main__",
    ],
}
MAY_IMPORT = {
    "ground": set(),
    "data": {"ground"},
    "network": {"ground"},
    "run": {"ground", "data", "network"},
    "show": {"ground", "data", "network", "run"},
    "command": {"ground", "data", "network", "run", "show"},
}
GROUP_OF = {module: group for group, modules in GROUPS.items() for module in modules}
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def module_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(file: Path) -> set[str]:
    """First part below ``cryo_monai`` of every import in a file, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "cryo_monai":
            assert node.level == 0
            parts = node.module.split(".")
            names |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(file: Path) -> None:
    module = module_of(file)
    group = GROUP_OF[module]
    for name in imported(file) - {module}:
        assert GROUP_OF[name] == group or GROUP_OF[name] in MAY_IMPORT[group], f"{module} imports {name}"
        assert name not in ("__main__", "__init__")


def test_every_public_name_is_there() -> None:
    for name in cryo_monai.__all__:
        assert getattr(cryo_monai, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Video'"):
        cryo_monai.Video  # noqa: B018


def test_importing_and_asking_for_help_import_nothing_heavy() -> None:
    code = """
import sys, warnings, os
before = (os.listdir("."), list(warnings.filters))
import cryo_monai, cryo_monai.__main__
assert (os.listdir("."), list(warnings.filters)) == before
try:
    cryo_monai.__main__.main(["simulate", "--help"])
except SystemExit:
    pass
heavy = {"torch", "monai", "numpy", "ignite", "sklearn", "torchvision", "medmnist"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_no_module_grows_too_long() -> None:
    for file in FILES:
        assert len(file.read_text().splitlines()) <= 330, file
