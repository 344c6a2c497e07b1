"""Which voxels speak for a class: Grad-CAM, Grad-CAM++ and occlusion sensitivity on a volume's own grid.

The methods are MONAI's; here their maps are put where they belong. Maps are not scaled: MONAI's default turns each to
its own [1, 0], highest to lowest, which suits no sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from monai.visualize import GradCAM, GradCAMpp, OcclusionSensitivity
from torch import Tensor, nn

from cryo_monai.clips import put_time_first
from cryo_monai.errors import InputError
from cryo_monai.explanations.cells import Cells, Shape, resample_cells
from cryo_monai.explanations.taps import find_layer, tapped, undisturbed
from cryo_monai.filters import full_precision
from cryo_monai.networks import VideoClassifier

METHODS = ("grad_cam", "grad_cam_pp", "occlusion")
BATCH = 16  # occluded clips at once


def explain_volumes(
    network: VideoClassifier,
    volumes: Tensor,
    *,
    method: str = "grad_cam",
    layer: str = "layer3",
    classes: Tensor | Sequence[int] | None = None,
    mask_size: int | Sequence[int] | None = None,
    overlap: float = 0.5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Map how much each voxel speaks for a class.

    Each volume is explained for itself, in float32 and from scores before temperature scaling: the maps depend neither
    on the batch nor on calibration. The network is left as it was.

    Parameters
    ----------
    network : VideoClassifier
        On the device to compute on.
    volumes : Tensor
        `(B, 1, z, y, x)`.
    method : str
        ``"grad_cam"`` (Selvaraju et al. 2017, arXiv 1610.02391), ``"grad_cam_pp"`` (Chattopadhyay et al. 2018, arXiv
        1710.11063) or ``"occlusion"``: the drop of the class's score when a box takes the mean of its clip, averaged
        over the boxes that cover a voxel.
    layer : str
        Of Grad-CAM; see `find_layer`. The paper's is ``layer3``. Cells of its map are centred where the layers before
        put them, see `Cells`; the map is interpolated linearly between them.
    classes : sequence of int, optional
        `(B,)`, to explain; by default the class of the highest score.
    mask_size : int or sequence of int, optional
        Edge of occluding boxes in voxels of the volume, ``(z, y, x)``; by default a quarter of the volume's edges.
    overlap : float
        Of neighbouring boxes, from 0 to below 1.

    Returns
    -------
    maps : Tensor
        `(B, z, y, x)` float32, zero or positive. An all-zero map says that nothing speaks for the class.
    classes : Tensor
        `(B,)` int64, those explained.
    probabilities : Tensor
        `(B, C)`, after temperature scaling.

    Raises
    ------
    InputError
        For an unknown method or layer, a layer without a map, or classes that are not there.
    """
    check_request(network, method=method, layer=layer)
    if volumes.ndim != 5 or volumes.shape[1] != 1:
        raise InputError(f"volumes: shape {tuple(volumes.shape)} is not (B, 1, z, y, x)")
    chosen = _checked_classes(classes, len(volumes), network.num_classes)
    device = next(network.parameters()).device
    rows = []
    with undisturbed(network), full_precision(), torch.inference_mode(False), torch.enable_grad():
        scores = _Scores(network).eval()
        for row in range(len(volumes)):
            volume = volumes[row : row + 1].detach().to(device, torch.float32).clone()
            wanted = None if chosen is None else chosen[row]
            if method == "occlusion":
                rows.append(_occlude(scores, volume, wanted, mask_size, overlap))
            else:
                rows.append(_grad_cam(scores, volume, wanted, method, layer))
    found = torch.cat([scores for _, _, scores in rows])
    labels = torch.tensor([label for _, label, _ in rows], dtype=torch.int64)
    return torch.cat([m for m, _, _ in rows]), labels, (found / network.temperature).softmax(-1)


def check_request(network: VideoClassifier, *, method: str, layer: str) -> None:
    """Raise an `InputError` unless there are such a method and such a layer."""
    if method not in METHODS:
        raise InputError(f"method: {method!r} is not one of {', '.join(METHODS)}")
    if method != "occlusion":
        find_layer(network, layer)


def layer_grid(network: VideoClassifier, layer: str) -> Shape:
    """Return the cells ``(t, h, w)`` of a layer's map on a clip of the network's size, after one pass through it.

    Raises
    ------
    InputError
        When there is no such layer, when what it puts out is no map, or when it is not known where its cells lie.
    """
    name = find_layer(network, layer)
    clip = torch.zeros(1, 1, *network.clip_size, device=next(network.parameters()).device)
    seen: list[Shape] = []
    with undisturbed(network), torch.no_grad(), tapped(network, name) as (tap, cells):
        handle = network.get_submodule(tap).register_forward_hook(lambda _, __, out: seen.append(_grid_of(out)))
        network.extract_features(clip)
        handle.remove()  # it sits in the tap, and goes with it in any case
    if not seen:
        raise InputError(f"layer {layer}: the network does not pass through it")
    return _checked_grid(seen[-1], cells, layer)


def _grid_of(maps: Tensor) -> Shape:
    return maps.shape[-3], maps.shape[-2], maps.shape[-1]


def _checked_grid(shape: Shape, cells: Mapping[Shape, Cells], layer: str) -> Shape:
    if shape not in cells:
        raise InputError(
            f"layer {layer}: where the cells of its map {list(shape)} lie is not known; choose an earlier one"
        )
    return shape


class _Scores(nn.Module):
    """Scores of volumes, moved so that the one in question is 0: Grad-CAM++ takes its exponential."""

    def __init__(self, network: VideoClassifier) -> None:
        super().__init__()
        self.network = network
        self.wanted: int | None = None
        self.scores = torch.zeros(0)

    def forward(self, volumes: Tensor) -> Tensor:
        scores: Tensor = self.network(volumes)
        self.scores = scores.detach()
        highest = self.scores.amax(1, keepdim=True)
        return scores - (highest if self.wanted is None else self.scores[:, self.wanted : self.wanted + 1])


class _ClipScores(nn.Module):
    """Scores of clips that have been made already."""

    def __init__(self, network: VideoClassifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, clips: Tensor) -> Tensor:
        scores: Tensor = self.network.head(self.network.extract_features(clips))
        return scores


def _grad_cam(
    scores: _Scores, volume: Tensor, wanted: int | None, method: str, layer: str
) -> tuple[Tensor, int, Tensor]:
    network = scores.network
    scores.wanted = wanted
    with tapped(network, find_layer(network, layer)) as (name, cells):
        # One at a time: for several volumes MONAI (1.6) sums the scores of all their classes over all of them, and its
        # Grad-CAM++ multiplies their gradients by a vector along the wrong axis.
        kind = GradCAM if method == "grad_cam" else GradCAMpp
        try:
            found = kind(scores, target_layers=f"network.{name}").compute_map(volume, class_idx=wanted)[:, 0].detach()
        except KeyError as error:
            if error.args != (f"network.{name}",):
                raise
            raise InputError(f"layer {layer}: the network does not pass through it") from error
        shape = _checked_grid(_grid_of(found), cells, layer)
        label = int(scores.scores.argmax()) if wanted is None else wanted
        return _on_volume(found, cells[shape], network, volume), label, scores.scores.cpu()


def _occlude(
    scores: _Scores, volume: Tensor, wanted: int | None, mask_size: int | Sequence[int] | None, overlap: float
) -> tuple[Tensor, int, Tensor]:
    network = scores.network
    # Clips are occluded, not volumes: their intensities stay scaled by the whole volume, and filters see no edges.
    with torch.no_grad():
        clips = network.make_clips(volume)
        on_clips = _ClipScores(network).eval()
        whole = on_clips(clips)
        label = int(whole.argmax()) if wanted is None else wanted
        occlusion = OcclusionSensitivity(
            on_clips,
            mask_size=_mask_in_clip(network, volume.shape[2:], mask_size),
            n_batch=BATCH,
            verbose=False,
            mode="mean_img",
            overlap=_checked_overlap(overlap),
            activate=lambda found: found[:, label : label + 1],
        )
        occluded = torch.as_tensor(occlusion(clips)[0])[:, 0]
    drop = (whole[:, label] - occluded).clamp(min=0)
    return _on_volume(drop, Cells(), network, volume), label, whole.cpu()


def _on_volume(maps: Tensor, cells: Cells, network: VideoClassifier, volume: Tensor) -> Tensor:
    """Put a map `(1, t, h, w)` on the grid of a volume `(1, 1, z, y, x)`."""
    turned = put_time_first(volume, network.volume_axes).shape[2:]
    placed = resample_cells(maps.float(), cells, network.clip_size, turned)
    back = [1 + network.volume_axes.index(axis) for axis in range(3)]
    return placed.permute(0, *back).contiguous().cpu()


def _mask_in_clip(
    network: VideoClassifier, shape: Sequence[int], mask_size: int | Sequence[int] | None
) -> tuple[int, ...]:
    if mask_size is None:
        sizes = [math.ceil(size / 4) for size in shape]
    else:
        sizes = [mask_size] * 3 if isinstance(mask_size, int) else list(mask_size)
    if len(sizes) != 3 or not all(1 <= m <= s for m, s in zip(sizes, shape, strict=True)):
        raise InputError(f"mask_size: {mask_size} must be from 1 voxel to the volume's edges {list(shape)}")
    axes = network.volume_axes
    return tuple(
        max(1, round(sizes[axis] * size / shape[axis])) for axis, size in zip(axes, network.clip_size, strict=True)
    )


def _checked_overlap(overlap: float) -> float:
    if not 0 <= overlap < 1:
        raise InputError(f"overlap: {overlap} must lie from 0 to below 1")
    return overlap


def _checked_classes(classes: Tensor | Sequence[int] | None, count: int, num_classes: int) -> list[int] | None:
    if classes is None:
        return None
    chosen = [int(label) for label in classes]
    if len(chosen) != count or not all(0 <= label < num_classes for label in chosen):
        raise InputError(f"classes: {chosen} must be {count} numbers from 0 to {num_classes - 1}, one per volume")
    return chosen
