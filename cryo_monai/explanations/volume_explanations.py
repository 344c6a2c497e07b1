"""One volume's explanation: its maps, its panel, and the numbers that are noted of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryo_monai.explanations.faithfulness import STEPS, centred_ball, hiding_curves, mass_inside, random_map
from cryo_monai.explanations.maps import explain_volumes
from cryo_monai.explanations.masks import Mask, ParticleMasks
from cryo_monai.explanations.overlays import overlay_suffix, write_overlay
from cryo_monai.explanations.pictures import explanation_panel
from cryo_monai.files import atomic_write_bytes
from cryo_monai.networks import VideoClassifier
from cryo_monai.reports.canvases import png_of


@dataclass
class VolumeExplainer:
    """Explains one volume after another into a folder.

    Attributes
    ----------
    folder : Path
        Where ``maps``, ``compared_maps`` and ``panels`` go.
    network, other : VideoClassifier
        Explained, and compared with it, if any; both know the same classes.
    method, layer : str
        See `explain_volumes`.
    label : int or None
        Class that is explained; by default the one that ``network`` predicts.
    faithfulness : bool
        Compute deletion and insertion curves.
    voxel_size : float or None
        Å of overlays; see `write_overlay`.
    names : mapping
        What to call the two networks: ``run``, ``compared``.
    """

    folder: Path
    network: VideoClassifier
    other: VideoClassifier | None
    method: str
    layer: str
    label: int | None
    faithfulness: bool
    voxel_size: float | None
    names: Mapping[str, str]
    masks: ParticleMasks = field(default_factory=ParticleMasks)

    def explain(self, item: Mapping[str, Any], volume: Tensor, name: str) -> dict[str, Any]:
        """Write the files of a volume `(1, z, y, x)`, and return what is to be noted of it."""
        mask = self._mask_of(item, volume)
        wanted = None if self.label is None else [self.label]
        found, classes, probabilities = explain_volumes(
            self.network, volume[None], method=self.method, layer=self.layer, classes=wanted
        )
        label = int(classes[0])
        explained = self.network.class_names[label]
        suffix = overlay_suffix(item["image"], self.voxel_size)
        maps = {"run": found}
        groups = {"run": self._group(self.network, volume, found, label, probabilities, mask)}
        groups["run"]["map"] = f"maps/{name}{suffix}"
        if self.other is not None:
            theirs = self.other.class_names.index(explained)
            maps["compared"], _, probabilities = explain_volumes(
                self.other, volume[None], method=self.method, layer=self.layer, classes=[theirs]
            )
            groups["compared"] = self._group(self.other, volume, maps["compared"], theirs, probabilities, mask)
            groups["compared"]["map"] = f"compared_maps/{name}{suffix}"
        groups |= self._controls(volume, label, mask)
        for key, one in maps.items():
            target = self.folder / groups[key]["map"]
            target.parent.mkdir(exist_ok=True)
            text = f"{self.method} {self.layer} {explained}"
            write_overlay(target, one[0].numpy(), item["image"], voxel_size=self.voxel_size, label=text)
        true = str(item.get("class_name", ""))
        headings = {
            f"{self.names[key]}: p = {groups[key]['probability']:.2f}": one[0].numpy() for key, one in maps.items()
        }
        title = f"{name}\nexplained: {explained}" + (f", true: {true}" if true else "")
        panel = explanation_panel(volume[0].numpy(), headings, mask=mask, title=title)
        atomic_write_bytes(self.folder / "panels" / f"{name}.png", png_of(panel))
        return {
            "path": str(item["path"]),
            "true_class": true,
            "explained_class": explained,
            "mask_fraction": None if mask is None else float(mask.mean()),
            "panel": f"panels/{name}.png",
            "files": [*(groups[key]["map"] for key in maps), f"panels/{name}.png"],
            "groups": groups,
        }

    def _mask_of(self, item: Mapping[str, Any], volume: Tensor) -> Mask | None:
        if not isinstance(item["image"], (str, os.PathLike)):
            return None
        mask = self.masks.of(item["image"])
        return mask if mask is not None and mask.shape == tuple(volume.shape[1:]) and mask.any() else None

    def _group(
        self,
        network: VideoClassifier,
        volume: Tensor,
        found: Tensor,
        label: int,
        probabilities: Tensor | None,
        mask: Mask | None,
    ) -> dict[str, Any]:
        """Numbers of one map `(1, z, y, x)`."""
        group: dict[str, Any] = {"empty": not bool(found.any())}
        if probabilities is not None:
            group["predicted_class"] = network.class_names[int(probabilities[0].argmax())]
            group["probability"] = float(probabilities[0, label])
        if self.faithfulness:
            curves = hiding_curves(network, volume[None], found, [label], steps=STEPS)
            group["deletion"], group["insertion"] = float(curves.deletion_areas[0]), float(curves.insertion_areas[0])
            group["deletion_curve"] = curves.deletion[0].round(6).tolist()
            group["insertion_curve"] = curves.insertion[0].round(6).tolist()
        if mask is not None:
            inside = float(mass_inside(found, torch.from_numpy(mask)[None])[0])
            group["mass_inside"] = None if np.isnan(inside) else inside
        return group

    def _controls(self, volume: Tensor, label: int, mask: Mask | None) -> dict[str, dict[str, Any]]:
        """Judge maps that know nothing of the network: by chance, and in the middle, where particles mostly are."""
        if not self.faithfulness and mask is None:
            return {}
        maps = {"random_order": random_map(volume.shape[1:]), "centred_ball": centred_ball(volume.shape[1:])}
        return {key: self._group(self.network, volume, one[None], label, None, mask) for key, one in maps.items()}
