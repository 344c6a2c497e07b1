"""Whether maps are true to the network, and whether they lie on the particle.

Deletion and insertion curves (Petsiuk et al. 2018, RISE, arXiv 1806.07421): the probability of a class while voxels are
hidden, highest of the map first, and while they are shown in the same order in a volume that is hidden else. A map that
is true to the network gives a small area under the first and a large one under the second.

Both areas rise with the network's confidence, whatever the map: they rank no networks. What is read is the advantage of
a map over random blobs (`random_map`), taken either way, for the same network and volume: insertion less deletion, less
the same of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cryo_monai.clips import put_time_first
from cryo_monai.errors import InputError
from cryo_monai.explanations.taps import undisturbed
from cryo_monai.filters import full_precision
from cryo_monai.networks import VideoClassifier

STEPS = 20
# Standard deviation of the blur that hides, in edges of the clip. It leaves the shades of the volume, and nothing of a
# particle; a constant, as RISE deletes with, draws sharp edges that networks react to, and noise is a texture.
BLUR = 0.25
BATCH = 16
BALL = 1 / 6  # standard deviation of the ball that is a control, in edges of the volume

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class HidingCurves:
    """Probabilities of a class while voxels are hidden or shown.

    Attributes
    ----------
    fractions : array
        `(steps + 1,)`, of the voxels that are hidden (deletion) or shown (insertion).
    deletion, insertion : array
        `(B, steps + 1)`.
    """

    fractions: Floats
    deletion: Floats
    insertion: Floats

    @property
    def deletion_areas(self) -> Floats:
        """Areas under the deletion curves, `(B,)`; smaller is better."""
        return _areas(self.deletion, self.fractions)

    @property
    def insertion_areas(self) -> Floats:
        """Areas under the insertion curves, `(B,)`; larger is better."""
        return _areas(self.insertion, self.fractions)

    @property
    def gains(self) -> Floats:
        """Insertion areas less deletion areas, `(B,)`."""
        return self.insertion_areas - self.deletion_areas

    def either_way(self) -> HidingCurves:
        """Mean of these curves and those of the reversed order, in which deletion is this insertion backwards.

        Random orders are as likely as their reverse. Together they are a control without the luck of the draw: gains
        are 0 for whatever network.
        """
        deletion = (self.deletion + self.insertion[:, ::-1]) / 2
        return HidingCurves(self.fractions, deletion, deletion[:, ::-1])


def hiding_curves(
    network: VideoClassifier, volumes: Tensor, maps: Tensor, classes: Tensor | Sequence[int], *, steps: int = STEPS
) -> HidingCurves:
    """Hide and show the voxels of volumes in the order of maps.

    What hides is the clip itself, blurred until nothing of a particle is left (`BLUR`). Clips are changed, not volumes,
    so that intensities stay scaled by the whole volume: with half of it blurred, the contrast of the rest would rise.
    Voxels of equal rank, as where a map is zero, come in one scattered order, the same for all volumes. Probabilities
    are those before temperature scaling, as maps are: calibration changes no curve.

    Parameters
    ----------
    network : VideoClassifier
        Left as it was.
    volumes : Tensor
        `(B, 1, z, y, x)`.
    maps : Tensor
        `(B, z, y, x)`.
    classes : sequence of int
        `(B,)`, whose probabilities are followed.
    steps : int
        In which all voxels are hidden.

    Raises
    ------
    InputError
        When maps or classes do not fit the volumes.
    """
    if maps.shape != (len(volumes), *volumes.shape[2:]) or len(classes) != len(volumes) or steps < 1:
        raise InputError(
            f"maps {tuple(maps.shape)} and {len(classes)} classes do not fit volumes {tuple(volumes.shape)}"
        )
    device = next(network.parameters()).device
    fractions = np.linspace(0, 1, steps + 1)
    deletion, insertion = [], []
    with undisturbed(network), full_precision(), torch.no_grad():
        for volume, found, label in zip(volumes, maps, classes, strict=True):
            clip = network.make_clips(volume[None].to(device))
            hidden = blurred_clips(clip)
            ranks = _ranks(found).to(device)
            counts = torch.as_tensor(np.round(fractions * ranks.numel()), device=device)
            chosen = (ranks < counts.view(-1, 1, 1, 1)).unsqueeze(1)  # (steps + 1, 1, z, y, x)
            on_clip = _on_clips(chosen, network)
            # Nothing deleted is all inserted: these two need no second pass.
            mixes = torch.cat([on_clip, ~on_clip[1:-1]])
            probabilities = []
            for some in torch.split(mixes, BATCH):
                scores = network.head(network.extract_features(torch.where(some, hidden, clip)))
                probabilities.append(scores.softmax(-1)[:, int(label)].double().cpu())
            row = torch.cat(probabilities).numpy()
            deletion.append(row[: steps + 1])
            insertion.append(np.concatenate([row[steps : steps + 1], row[steps + 1 :], row[:1]]))
    return HidingCurves(fractions, np.array(deletion), np.array(insertion))


def blurred_clips(clips: Tensor) -> Tensor:
    """Blur clips `(B, 1, depth, height, width)` by a Gaussian of `BLUR` of each edge, normalised at the faces."""
    for axis in (2, 3, 4):
        size = clips.shape[axis]
        places = torch.arange(size, device=clips.device, dtype=clips.dtype)
        weights = torch.exp(-0.5 * ((places[:, None] - places) / (BLUR * size)) ** 2)
        weights = weights / weights.sum(1, keepdim=True)
        clips = torch.movedim(torch.movedim(clips, axis, -1) @ weights.T, -1, axis)
    return clips


def random_map(shape: Sequence[int], *, cells: int = 4, seed: int = 0) -> Tensor:
    """Return a control: random numbers on a grid of ``cells`` along each edge, interpolated; as smooth as maps are.

    Voxels in an order without any smoothness would be a control that nobody's map resembles.
    """
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((1, 1, cells, cells, cells), dtype=np.float32))
    return F.interpolate(coarse, size=list(shape), mode="trilinear", align_corners=False)[0, 0]


def centred_ball(shape: Sequence[int]) -> Tensor:
    """Return a control: a Gaussian of `BALL` of each edge in the middle, which is where particles are cut to be."""
    axes = [torch.arange(size) - size // 2 for size in shape]
    exponents = [-0.5 * (axis / (BALL * size)) ** 2 for axis, size in zip(axes, shape, strict=True)]
    parts = [exponent.exp() for exponent in exponents]
    return parts[0][:, None, None] * parts[1][None, :, None] * parts[2][None, None, :]


def mass_inside(maps: Tensor, masks: Tensor) -> Floats:
    """Fraction of the sum of each map that lies inside a mask.

    Parameters
    ----------
    maps : Tensor
        `(B, z, y, x)`, zero or positive.
    masks : Tensor
        `(B, z, y, x)`, true inside. A map that knows nothing of the particle has, in the mean, the fraction of the
        volume that its mask takes.

    Returns
    -------
    array
        `(B,)`; NaN for maps that are zero everywhere.

    Raises
    ------
    InputError
        When the shapes differ.
    """
    if maps.shape != masks.shape:
        raise InputError(f"maps {tuple(maps.shape)} and masks {tuple(masks.shape)} have different shapes")
    flat = maps.double().flatten(1)
    total = flat.sum(1)
    inside = (flat * masks.flatten(1)).sum(1)
    return torch.where(total > 0, inside / total.clamp(min=torch.finfo(torch.float64).tiny), torch.nan).numpy()


def _areas(curves: Floats, fractions: Floats) -> Floats:
    return np.asarray(np.trapezoid(curves, fractions, axis=1))


def _ranks(found: Tensor) -> Tensor:
    """Place of each voxel `(z, y, x)` in the order from highest to lowest, counted from 0."""
    values = found.flatten().cpu().double().numpy()
    scattered = np.random.default_rng(0).permutation(len(values))
    order = np.lexsort((scattered, -values))
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[order] = np.arange(len(values))
    return torch.from_numpy(ranks).view(found.shape)


def _on_clips(chosen: Tensor, network: VideoClassifier) -> Tensor:
    """Masks of volumes `(n, 1, z, y, x)` as masks of clips, each pixel taking its nearest voxel's."""
    turned = put_time_first(chosen.float(), network.volume_axes)
    return F.interpolate(turned, size=network.clip_size, mode="nearest-exact") > 0.5
