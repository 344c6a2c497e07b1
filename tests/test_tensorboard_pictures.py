"""An evaluation leaves its confusion matrix, slices and maps where TensorBoard finds them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from monai.engines import SupervisedEvaluator
from monai.transforms import Activationsd, Compose
from torch.utils.data import DataLoader

from cryo_monai import tensorboard_pictures
from cryo_monai.errors import InputError
from cryo_monai.networks import VideoClassifier
from cryo_monai.reports.canvases import new_figure
from cryo_monai.tensorboard_pictures import TensorBoardPictures

NAMES = ["ring", "rod", "shell"]
SHAPE = (10, 12, 14)
LABELS = [1, 1, 1, 0, 2, 0, 2]


def network() -> VideoClassifier:
    torch.manual_seed(0)
    return VideoClassifier(3, **{k: TINY[k] for k in ("backbone", "backbone_options", "clip_size")})


def evaluator(handler: TensorBoardPictures, model: VideoClassifier, decollate: bool = False) -> SupervisedEvaluator:
    rng = np.random.default_rng(0)
    items = [
        {"image": torch.from_numpy(rng.random((1, *SHAPE), dtype=np.float32)), "label": label, "path": f"{n}.mrc"}
        for n, label in enumerate(LABELS)
    ]
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(items, batch_size=3),
        network=model,
        postprocessing=Compose([Activationsd(keys="pred", softmax=True, dim=-1)]),
        val_handlers=[handler],
        decollate=decollate,
    )


def images(folder: Path) -> dict[str, list[int]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"images": 0})
    found.Reload()
    return {tag: [event.step for event in found.Images(tag)] for tag in found.Tags()["images"]}


@pytest.mark.parametrize("decollate", [True, False])
def test_matrix_slices_and_maps_are_written_and_the_network_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decollate: bool
) -> None:
    drawn: list[tuple[np.ndarray, list[str]]] = []
    real = tensorboard_pictures.confusion_figure
    monkeypatch.setattr(
        tensorboard_pictures,
        "confusion_figure",
        lambda matrix, names, **options: (drawn.append((np.array(matrix), names)), real(matrix, names, **options))[1],
    )
    model = network().eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    handler = TensorBoardPictures(tmp_path, model, NAMES, num_volumes=2)
    engine = evaluator(handler, model, decollate)
    engine.run(1)
    engine.run(2)
    assert images(tmp_path) == {
        "confusion_matrix": [1, 2],
        "samples": [1, 2],
        **{f"cam/{number}": [1, 2] for number in range(2)},
    }
    matrix, names = drawn[0]
    assert names == NAMES
    assert matrix.sum(1).tolist() == [LABELS.count(label) for label in range(3)]
    assert not model.training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_each_class_is_shown_before_any_is_shown_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[list[str]] = []
    real = tensorboard_pictures.sample_slices
    monkeypatch.setattr(
        tensorboard_pictures,
        "sample_slices",
        lambda volumes, names: (shown.append(list(names)), real(volumes, names))[1],
    )
    blank = new_figure(1, width=1, label="blank")
    monkeypatch.setattr(tensorboard_pictures, "explanation_panel", lambda *arguments, **options: blank)
    model = network()
    for count in (3, 5):
        evaluator(TensorBoardPictures(tmp_path, model, NAMES, num_volumes=count), model).run()
    assert shown == [["rod", "ring", "shell"], ["rod", "ring", "shell", "rod", "rod"]]


def test_without_volumes_there_is_the_matrix_alone(tmp_path: Path) -> None:
    model = network()
    evaluator(TensorBoardPictures(tmp_path, model, NAMES, num_volumes=0), model).run()
    assert list(images(tmp_path)) == ["confusion_matrix"]


def test_a_layer_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="layer: 'layr3' is no module of resnet18"):
        TensorBoardPictures(tmp_path, network(), NAMES, layer="layr3")
