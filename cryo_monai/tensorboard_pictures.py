"""Pictures of an evaluation for TensorBoard: confusion matrix, sample slices, class activation maps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from ignite.engine import Engine, Events

from cryo_monai.evaluations import scored_volumes
from cryo_monai.explanations.maps import check_request, explain_volumes
from cryo_monai.explanations.pictures import explanation_panel, sample_slices
from cryo_monai.networks import VideoClassifier
from cryo_monai.reports.canvases import styled
from cryo_monai.reports.figures import confusion_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class TensorBoardPictures:
    """Evaluator handler that writes images for TensorBoard when the evaluation is over.

    Tags are ``confusion_matrix``, ``samples`` (middle slices) and ``cam/N`` (Grad-CAM of the predicted class); the
    step is the evaluator's epoch. Volumes shown are the first of each class, then the first of all.

    Parameters
    ----------
    log_dir : path
        Where the event file goes.
    network : VideoClassifier
        The one that is evaluated; left as it was.
    class_names : sequence of str
        Names by label.
    num_volumes : int
        Shown; 0 for the confusion matrix alone.
    layer : str
        See `find_layer`.

    Raises
    ------
    InputError
        When the network has no such layer.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str],
        network: VideoClassifier,
        class_names: Sequence[str],
        *,
        num_volumes: int = 8,
        layer: str = "layer3",
    ) -> None:
        check_request(network, method="grad_cam", layer=layer)
        self.log_dir = str(log_dir)
        self.network = network
        self.class_names = list(class_names)
        self.num_volumes = num_volumes
        self.layer = layer
        self._matrix = np.zeros((0, 0), dtype=np.int64)
        self._first: dict[int, tuple[Any, int]] = {}
        self._others: list[tuple[Any, int]] = []

    def attach(self, engine: Engine) -> None:
        """Collect from each iteration, write when the engine completes."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        count = len(self.class_names)
        self._matrix = np.zeros((count, count), dtype=np.int64)
        self._first, self._others = {}, []

    def _collect(self, engine: Engine) -> None:
        for item, label, probabilities in scored_volumes(engine):
            self._matrix[label, probabilities.argmax()] += 1
            if label not in self._first and len(self._first) < self.num_volumes:
                self._first[label] = _kept(item["image"]), label
            elif len(self._others) < self.num_volumes:
                self._others.append((_kept(item["image"]), label))

    def _write(self, engine: Engine) -> None:
        from torch.utils.tensorboard import SummaryWriter

        step = engine.state.epoch
        with SummaryWriter(self.log_dir) as writer:

            def add(tag: str, figure: Figure) -> None:
                writer.add_image(tag, _pixels(figure), step, dataformats="HWC")

            add("confusion_matrix", confusion_figure(self._matrix.tolist(), self.class_names, normalised=False))
            shown = [*self._first.values(), *self._others][: self.num_volumes]
            if not shown:
                return
            names = [self.class_names[label] for _, label in shown]
            add("samples", sample_slices([volume[0].numpy() for volume, _ in shown], names))
            for number, ((volume, _), name) in enumerate(zip(shown, names, strict=True)):
                maps, classes, probabilities = explain_volumes(self.network, volume[None], layer=self.layer)
                found = int(classes[0])
                heading = f"{self.class_names[found]}: {float(probabilities[0, found]):.2f}"
                panel = explanation_panel(volume[0].numpy(), {heading: maps[0].numpy()}, title=f"true class {name}")
                add(f"cam/{number}", panel)


def _kept(image: Any) -> torch.Tensor:
    """Copy a volume to the CPU as a plain tensor."""
    return torch.as_tensor(np.array(image.detach().cpu().numpy(), dtype=np.float32))


@styled()
def _pixels(figure: Figure) -> npt.NDArray[np.uint8]:
    canvas: Any = figure.canvas
    figure.set_dpi(110)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
