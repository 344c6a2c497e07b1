"""`ClipGenerator`: labelled clips by number, without files, on the device that trains on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cryo_monai.errors import InputError
from cryo_monai.generation import degradation, fields, particles, sprites
from cryo_monai.generation.counters import normals, sample_keys, uniforms
from cryo_monai.generation.degradation import Degradation, degrade, eased, shaped

TASKS = ("fields", "sprites", "assemblies")
FRAMES = ("moving", "still", "shuffled")
AXIS_NUMBERS = 6  # of a symmetric 3 x 3 matrix
Size = tuple[int, int, int]
_AT_ONCE = 1 << 21  # voxels, measured quickest: many enough for what a batch costs whatever its size


class ClipGenerator:
    """Makes clips of several tasks, mixed within every batch, each from (seed, number) alone.

    Parameters
    ----------
    clip_size : sequence of int
        ``(D, H, W)``; W even.
    tasks : mapping of str to float
        Shares of ``"fields"``, ``"sprites"`` and ``"assemblies"`` among the clips.
    num_assemblies : int
        Classes of the task of assemblies.
    frames : str
        ``"moving"``; controls are ``"still"``, where all slices of a signal are its middle one, and ``"shuffled"``,
        where they come in random order.
    crowded : float
        Share of assemblies with neighbours.
    warm_up : int
        The first clips are degraded less, and crowded less, in proportion to their number, up to this one: from clips
        that are hard from the start little is learnt at first.
    symmetry_head, axis_head : bool
        Ask for the symmetry of assemblies, and for the direction of their main axis, too.
    degradation : mapping, optional
        See `Degradation`.
    clip_scales : sequence of float
        Sizes that clips may be asked for, relative to ``clip_size`` and rounded to even numbers: attribute ``sizes``.
    seed : int
        Same seed, same clips, on any device but for rounding, and in any batch.

    Raises
    ------
    InputError
        For unknown tasks, shares that are not positive, impossible sizes.
    """

    def __init__(
        self,
        clip_size: Sequence[int],
        tasks: Mapping[str, float],
        *,
        num_assemblies: int = 128,
        frames: str = "moving",
        crowded: float = 0.3,
        warm_up: int = 0,
        symmetry_head: bool = False,
        axis_head: bool = False,
        degradation: Mapping[str, Any] | None = None,
        clip_scales: Sequence[float] = (1.0,),
        seed: int = 0,
    ) -> None:
        if len(clip_size) != 3 or min(clip_size) < 4 or clip_size[2] % 2:
            raise InputError(f"clip_size: {list(clip_size)} must be three numbers of 4 or more, the last one even")
        unknown = [name for name in tasks if name not in TASKS]
        if unknown or not tasks or min(tasks.values()) <= 0:
            raise InputError(f"tasks: {dict(tasks)}: give shares above 0 of {', '.join(TASKS)}")
        if frames not in FRAMES:
            raise InputError(f"frames: {frames!r} is not one of {', '.join(FRAMES)}")
        if num_assemblies < 2:
            raise InputError(f"num_assemblies: {num_assemblies} must be 2 or more")
        if seed < 0:
            raise InputError(f"seed: {seed} must be 0 or more")
        self.clip_size = (int(clip_size[0]), int(clip_size[1]), int(clip_size[2]))
        listed = isinstance(clip_scales, (list, tuple)) and len(clip_scales) > 0
        if not listed or not all(isinstance(scale, (int, float)) and 0 < scale < math.inf for scale in clip_scales):
            raise InputError(f"clip_scales: {clip_scales} must be a list of numbers above 0, such as [1.0]")
        self.sizes = [_scaled(self.clip_size, scale) for scale in clip_scales]
        if min(map(min, self.sizes)) < 4:
            raise InputError(f"clip_scales: {min(clip_scales)} makes clips of {list(min(self.sizes))}; 4 is the least")
        self.tasks = {name: float(tasks[name]) for name in TASKS if name in tasks}
        self.frames = frames
        self.crowded = crowded
        self.warm_up = warm_up
        self.degradation = Degradation(**_tuples(degradation or {}))
        self.seed = seed
        self._names: dict[str, tuple[str, ...]] = {}
        self._banks: dict[torch.device, particles.AssemblyBank] = {}
        if "fields" in tasks:
            self._names["fields"] = fields.FIELD_CLASSES
        if "sprites" in tasks:
            self._names["sprites"] = sprites.SPRITE_CLASSES
        self.num_assemblies = num_assemblies if "assemblies" in tasks else 0
        if self.num_assemblies:
            self._names["assemblies"] = tuple(
                particles.draw_assembly(number).name for number in range(self.num_assemblies)
            )
        self.symmetry_head = symmetry_head and bool(self.num_assemblies)
        self.axis_head = axis_head and bool(self.num_assemblies)

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """What each group of outputs is called: classes by task, then symmetries, then the axis."""
        groups = dict(self._names)
        if self.symmetry_head:
            groups["symmetry"] = particles.SYMMETRIES
        if self.axis_head:
            groups["axis"] = ("zz", "yy", "xx", "zy", "zx", "yx")
        return groups

    @property
    def output_names(self) -> list[str]:
        """Names of all outputs of a network, in order."""
        return [f"{group}:{name}" for group, names in self.groups.items() for name in names]

    def at_once(self, size: Size | None = None) -> int:
        """How many clips of a size are quickest made together."""
        return max(1, _AT_ONCE // math.prod(size or self.clip_size))

    @property
    def num_outputs(self) -> int:
        """Outputs that a network needs."""
        return sum(len(names) for names in self.groups.values())

    def generate(
        self, numbers: Tensor, device: torch.device | str = "cpu", size: Size | None = None
    ) -> tuple[Tensor, Tensor]:
        """Make clips.

        Parameters
        ----------
        numbers : Tensor
            `(B,)` int64, on the CPU: which clips.
        device : torch.device
            Where they are made.
        size : tuple of int, optional
            Their size, ``clip_size`` by default. The same clip of another size shows the same particle in the same pose
            and the same sprite; of a noise field it has the same class, and noise is other noise of the same strength.

        Returns
        -------
        tuple
            Clips `(B, 1, D, H, W)`; and targets `(B, 2 + AXIS_NUMBERS)` float32: index of the class among all
            outputs, index of the symmetry or -1, and the main axis as the matrix ``n n^T``, or NaN where there is none.
        """
        device = torch.device(device)
        size = size or self.clip_size
        parts = torch.split(numbers, self.at_once(size)) if device.type == "cpu" else [numbers]
        done = [self._chunk(part, device, size) for part in parts]
        if len(done) == 1:
            return done[0]
        return torch.cat([clips for clips, _ in done]), torch.cat([targets for _, targets in done])

    def _chunk(self, numbers: Tensor, device: torch.device, size: Size) -> tuple[Tensor, Tensor]:
        keys = sample_keys(self.seed, numbers)
        drawn = uniforms(keys, 2 + degradation.NUM_PARAMETERS + particles.NUM_PARAMETERS, stream=0)
        shares = torch.tensor(list(self.tasks.values()))
        which = torch.bucketize(drawn[:, 0].contiguous(), (shares / shares.sum()).cumsum(0)[:-1], right=True)
        share = ((numbers + 1) / max(1, self.warm_up)).clamp(max=1).float()
        parameters = eased(drawn[:, 2 : 2 + degradation.NUM_PARAMETERS], share)
        own = drawn[:, 2 + degradation.NUM_PARAMETERS :]
        batch = len(numbers)
        parts = []
        extents = torch.zeros(batch)
        targets = torch.full((batch, 2 + AXIS_NUMBERS), float("nan"))
        targets[:, 1] = -1
        keys_there, own_there = keys.to(device), own.to(device)
        first = 0
        for place, (task, names) in enumerate(self._names.items()):
            rows = torch.nonzero(which == place)[:, 0]
            classes = (drawn[rows, 1] * len(names)).long().clamp(max=len(names) - 1)
            targets[rows, 0] = (first + classes).float()
            first += len(names)
            if not len(rows):
                continue
            there = rows.to(device)
            if task == "assemblies":
                made = self._particles(own[rows], classes, rows, share[rows], extents, targets, device, size)
            elif task == "fields":
                options = own_there[there, : fields.NUM_PARAMETERS]
                made = fields.noise_fields(keys_there[there], options, classes.to(device), size)
            else:
                options = own_there[there, : sprites.NUM_PARAMETERS]
                made = sprites.moving_sprites(options, classes.to(device), size)
            parts.append((there, made))
        if len(parts) == 1:
            signals = parts[0][1]
        else:
            signals = torch.zeros(batch, *size, device=device)
            for there, made in parts:
                signals.index_add_(0, there, made)  # faster than setting them
        parameters = parameters.to(device)
        signals = shaped(signals, parameters[:, :3], self.degradation.shape_prob)
        signals = self._arranged(signals, keys_there)
        clips = degrade(signals, keys_there, parameters, extents.to(device), self.degradation)
        return clips[:, None], targets.to(device)

    def _particles(
        self,
        own: Tensor,
        classes: Tensor,
        rows: Tensor,
        share: Tensor,
        extents: Tensor,
        targets: Tensor,
        device: torch.device,
        size: Size,
    ) -> Tensor:
        """Make signals of assemblies, and note their extents and further targets."""
        here = particles.assembly_bank(self.num_assemblies)
        poses = particles.draw_poses(own, classes, here, crowded=self.crowded * share)
        extents[rows] = poses.extents
        targets[rows, 1] = here.symmetries[classes].float()
        has_axis = here.symmetries[classes] < particles.SYMMETRIES.index("T")
        has_axis &= here.symmetries[classes] > 0
        axis = poses.rotations[:, 0, :, 0]  # where z goes
        pairs = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
        products = torch.stack([axis[:, i] * axis[:, j] for i, j in pairs], dim=1)
        targets[rows, 2:] = torch.where(has_axis[:, None], products, float("nan"))
        if device not in self._banks:
            self._banks[device] = here.to(device)
        moved = (value.to(device) for value in (poses.members, poses.rotations, poses.places, poses.extents))
        return particles.render_particles(particles.Poses(*moved), self._banks[device], size)

    def _arranged(self, signals: Tensor, keys: Tensor) -> Tensor:
        """Put the slices in the order that a control wants."""
        depth = signals.shape[1]
        if self.frames == "still":
            return signals[:, depth // 2, None].expand_as(signals).contiguous()
        if self.frames == "shuffled":
            order = normals(keys, (depth,), stream=3).argsort(dim=1)
            order += torch.arange(len(keys), device=keys.device)[:, None] * depth
            return signals.flatten(0, 1).index_select(0, order.flatten()).view_as(signals)
        return signals

    def description(self) -> dict[str, Any]:
        """Return what the clips are, as plain values."""
        return {
            "tasks": self.tasks,
            "classes": {task: len(names) for task, names in self._names.items()},
            "clip_size": list(self.clip_size),
            "sizes": [list(size) for size in self.sizes],
            "frames": self.frames,
            "seed": self.seed,
        }


def _scaled(size: Size, scale: float) -> Size:
    """Scale a size, to even numbers."""
    if scale == 1:
        return size
    depth, height, width = (2 * round(side * scale / 2) for side in size)
    return depth, height, width


def _tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, (list, tuple)) else value for name, value in options.items()}
