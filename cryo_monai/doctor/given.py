"""Whether a run or a bundle can be loaded."""

from __future__ import annotations

import os
from pathlib import Path

from cryo_monai.doctor.findings import FAIL, PASS, Finding
from cryo_monai.errors import CryoMonaiError


def given_finding(path: str | os.PathLike[str]) -> Finding:
    """Load the network and the weights of a run, or compose every workflow of a bundle; no data are read.

    Parameters
    ----------
    path : path
        A run folder, or a bundle folder. A bundle's configuration is a program: it is run as far as its network.
    """
    folder = Path(path)
    name = str(folder)
    try:
        if (folder / "run.json").is_file():
            return Finding("given", name, PASS, _check_run(folder))
        if (folder / "configs").is_dir():
            return Finding("given", name, PASS, _check_bundle(folder))
    except CryoMonaiError as error:
        return Finding("given", name, FAIL, str(error).replace("\n", "; "), "mend what it names")
    except Exception as error:  # what a configuration raises is its own
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        return Finding("given", name, FAIL, f"{type(error).__name__}: {reason}", "mend the configuration")
    remedy = "name the output_dir of a training, or a folder with configs/"
    return Finding("given", name, FAIL, "neither a run (run.json) nor a bundle (configs/)", remedy)


def _check_run(folder: Path) -> str:
    from cryo_monai.checkpoints import load_checkpoint
    from cryo_monai.errors import unwrapped_errors
    from cryo_monai.run_inference import inference_of

    workflow = inference_of(folder, {"device": "cpu"})
    with unwrapped_errors():
        network = workflow.parser.get_parsed_content("network")
        load_checkpoint(network, folder / "models" / "model.pt")
    return f"a run: {network.backbone_name} with best weights for {', '.join(network.class_names)}"


def _check_bundle(folder: Path) -> str:
    from cryo_monai.errors import unwrapped_errors
    from cryo_monai.workflows import FILES, load_workflow

    for kind in FILES:
        workflow = load_workflow(folder, kind)
        with unwrapped_errors():
            network = workflow.parser.get_parsed_content("network_def")
    return f"a bundle: {', '.join(FILES)} can be composed, with a {type(network).__name__}"
