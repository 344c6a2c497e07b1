"""One volume's explanation: its maps, its panel, and the numbers that are noted of it."""

from __future__ import annotations

import os
import zlib
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

FOLDERS = {"run": "maps", "compared": "compared_maps"}


@dataclass
class VolumeExplainer:
    """Explains one volume after another into a folder.

    Attributes
    ----------
    folder : Path
        Where ``maps``, ``compared_maps`` and ``panels`` go.
    networks : mapping
        ``run``, which is explained, and ``compared``, if any, which knows the same classes.
    method, layer : str
        See `explain_volumes`.
    class_name : str or None
        Explained; by default the class that the run predicts.
    faithfulness : bool
        Compute deletion and insertion curves.
    voxel_size : float or None
        Å of overlays; see `write_overlay`.
    names : mapping
        What to call the networks.
    """

    folder: Path
    networks: Mapping[str, VideoClassifier]
    method: str
    layer: str
    class_name: str | None
    faithfulness: bool
    voxel_size: float | None
    names: Mapping[str, str]
    masks: ParticleMasks = field(default_factory=ParticleMasks)

    def explain(self, item: Mapping[str, Any], volume: Tensor, name: str) -> dict[str, Any]:
        """Write the files of a volume `(1, z, y, x)`, and return what is to be noted of it."""
        mask = self._mask_of(item, volume)
        explained = self.class_name
        maps: dict[str, Tensor] = {}
        notes: dict[str, dict[str, Any]] = {}
        for key, network in self.networks.items():
            classes = None if explained is None else [network.class_names.index(explained)]
            found, labels, probabilities = explain_volumes(
                network, volume[None], method=self.method, layer=self.layer, classes=classes
            )
            label = int(labels[0])
            explained = network.class_names[label]  # the run comes first, and what it predicts is explained in both
            maps[key] = found
            notes[key] = {
                "predicted_class": network.class_names[int(probabilities[0].argmax())],
                "probability": float(probabilities[0, label]),
                "map": f"{FOLDERS[key]}/{name}{overlay_suffix(item['image'], self.voxel_size)}",
                "orders": self._judged(network, volume, found, label, mask),
            }
            self._write_map(notes[key]["map"], found, item, f"{self.method} {self.layer} {explained}")
        facts = {
            "path": str(item["path"]),
            "true_class": str(item.get("class_name", "")),
            "explained_class": explained,
            "mask_fraction": None if mask is None else float(mask.mean()),
            "panel": f"panels/{name}.png",
            "files": [*(note["map"] for note in notes.values()), f"panels/{name}.png"],
            "networks": notes,
        }
        self._write_panel(name, volume, maps, mask, facts)
        return facts

    def _mask_of(self, item: Mapping[str, Any], volume: Tensor) -> Mask | None:
        if not isinstance(item["image"], (str, os.PathLike)):
            return None
        mask = self.masks.of(item["image"])
        return mask if mask is not None and mask.shape == tuple(volume.shape[1:]) and mask.any() else None

    def _write_map(self, file: str, found: Tensor, item: Mapping[str, Any], text: str) -> None:
        target = self.folder / file
        target.parent.mkdir(exist_ok=True)
        write_overlay(target, found[0].numpy(), item["image"], voxel_size=self.voxel_size, label=text)

    def _write_panel(
        self, name: str, volume: Tensor, maps: Mapping[str, Tensor], mask: Mask | None, facts: Mapping[str, Any]
    ) -> None:
        headings = {
            f"{self.names[key]}: p = {facts['networks'][key]['probability']:.2f}": found[0].numpy()
            for key, found in maps.items()
        }
        true = f", true: {facts['true_class']}" if facts["true_class"] else ""
        title = f"{name}\nexplained: {facts['explained_class']}{true}"
        panel = explanation_panel(volume[0].numpy(), headings, mask=mask, title=title)
        atomic_write_bytes(self.folder / facts["panel"], png_of(panel))

    def _judged(
        self, network: VideoClassifier, volume: Tensor, found: Tensor, label: int, mask: Mask | None
    ) -> dict[str, dict[str, Any]]:
        """Numbers of a map `(1, z, y, x)` and, for the same network, of maps that know nothing of it.

        These are random blobs, others for each volume and taken either way, and a ball in the middle, where particles
        mostly are.
        """
        orders = {"map": found}
        if self.faithfulness or mask is not None:
            seed = zlib.crc32(volume.numpy().tobytes())
            orders["random_order"] = random_map(volume.shape[1:], seed=seed)[None]
            orders["centred_ball"] = centred_ball(volume.shape[1:])[None]
        judged = {
            key: self._measured(network, volume, order, label, mask, either_way=key == "random_order")
            for key, order in orders.items()
        }
        if self.faithfulness:
            for key in ("map", "centred_ball"):
                judged[key]["advantage"] = judged[key]["gain"] - judged["random_order"]["gain"]
        return judged

    def _measured(
        self,
        network: VideoClassifier,
        volume: Tensor,
        order: Tensor,
        label: int,
        mask: Mask | None,
        *,
        either_way: bool,
    ) -> dict[str, Any]:
        facts: dict[str, Any] = {"empty": not bool(order.any())}
        if self.faithfulness:
            curves = hiding_curves(network, volume[None], order, [label], steps=STEPS)
            curves = curves.either_way() if either_way else curves
            facts["deletion"], facts["insertion"] = float(curves.deletion_areas[0]), float(curves.insertion_areas[0])
            facts["gain"] = float(curves.gains[0])
            facts["deletion_curve"] = curves.deletion[0].round(6).tolist()
            facts["insertion_curve"] = curves.insertion[0].round(6).tolist()
        if mask is not None:
            inside = float(mass_inside(order, torch.from_numpy(mask)[None])[0])
            facts["mass_inside"] = None if np.isnan(inside) else inside
        return facts
