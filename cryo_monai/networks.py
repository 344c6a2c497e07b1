"""`VideoClassifier`: single-channel volumes of any size -> class scores, through a video backbone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cryo_monai.backbones import build_backbone, look_up_backbone
from cryo_monai.clips import TIME_AXES, check_time_axis, is_traced, put_time_first, resample_clips
from cryo_monai.errors import InputError
from cryo_monai.filters import difference_of_gaussians, gaussian_kernel

INTENSITIES = ("min_max", "z_score", "percentile")
PRECISIONS = ("auto", "float32", "bfloat16")


def scale_intensity(volumes: Tensor, how: str) -> Tensor:
    """Scale each volume by its own intensities.

    Parameters
    ----------
    volumes : Tensor
        `(B, 1, z, y, x)`.
    how : str
        ``"min_max"`` to [0, 1]; ``"percentile"`` to [0, 1] between the percentiles 0.5 and 99.5, clipped; ``"z_score"``
        to mean 0 and standard deviation 1. A volume of one value becomes zero.
    """
    flat = volumes.flatten(1).float()
    if how == "z_score":
        low = flat.mean(1)
        high = low + flat.std(1)
    elif how == "percentile":
        low, high = _percentiles(flat)
    else:
        low, high = flat.amin(1), flat.amax(1)
    span = high - low
    span = torch.where(span > 0, span, torch.ones_like(span))
    scaled = (flat - low[:, None]) / span[:, None]
    if how == "percentile":
        scaled = scaled.clamp(0, 1)
    return scaled.view(volumes.shape)


def _percentiles(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Return the percentiles 0.5 and 99.5 of each row `(B, n)`."""
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        count = flat.shape[1] // 200
        if is_traced():  # the same values by operations that ONNX has, and by numbers that are never taken for 1
            place = torch.full((flat.shape[0], 1), torch.sym_max(1, count) - 1, device=flat.device)
            low = flat.topk(count + 2, dim=1, largest=False)[0].gather(1, place)[:, 0]
            return low, flat.topk(count + 2, dim=1)[0].gather(1, place)[:, 0]
    rank = max(1, int(0.005 * flat.shape[1]))
    return flat.kthvalue(rank, dim=1)[0], flat.kthvalue(flat.shape[1] + 1 - rank, dim=1)[0]


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 convolutions run in hardware: Ampere GPUs and later, CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(bool(getattr(torch.cpu, check, bool)()) for check in checks)
    return False


class VideoClassifier(nn.Module):
    """Classify volumes with a video network: depth is time, one grey channel stands for three equal ones.

    Band-pass (optional) -> intensity scaling -> resampling to the clip size -> backbone -> head. The same steps run in
    training, where ``matrices`` say which random clips to take, and everywhere else, where the whole volume is resized.

    Parameters
    ----------
    num_classes : int
        Number of class scores.
    backbone : str
        A key of `cryo_monai.backbones.BACKBONES`.
    backbone_options : mapping, optional
        For the backbone's builder.
    clip_size : sequence of int
        ``(depth, height, width)`` that the backbone sees.
    time_axis : str
        ``"z"``, ``"y"`` or ``"x"``: the axis of a volume that becomes the depth of the clip.
    band_pass : mapping, optional
        Difference of Gaussians at the volume's own resolution: ``{"sigma": [narrow, wide]}`` in voxels, or in Å when
        ``"voxel_size"`` (Å) is there too.
    intensity : str
        See `scale_intensity`.
    mean, std : float
        Scalars subtracted and divided by after scaling; `initialise` sets them to what a checkpoint was trained on.
        They are one number for all three channels, which keeps the channel folding exact at zero-padded borders.
    precision : str
        ``"bfloat16"`` runs the backbone under autocast, ``"float32"`` does not, ``"auto"`` chooses bfloat16 where the
        hardware has it. Parameters, head and scores stay float32.
    channels_last : bool
        Keep feature maps in memory format ``channels_last_3d``, which is faster on CPU and GPU.
    dropout : float
        Before the last layer.

    Raises
    ------
    InputError
        When an argument is impossible.
    """

    __jit_unused_properties__ = ("num_classes",)

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str = "resnet34",
        backbone_options: Mapping[str, Any] | None = None,
        clip_size: Sequence[int] = (32, 128, 128),
        time_axis: str = "z",
        band_pass: Mapping[str, Any] | None = None,
        intensity: str = "min_max",
        mean: float = 0.0,
        std: float = 1.0,
        precision: str = "auto",
        channels_last: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise InputError(f"num_classes: {num_classes} must be 2 or more")
        if len(clip_size) != 3 or min(clip_size) < 4:
            raise InputError(f"clip_size: {list(clip_size)} must be three numbers of 4 or more")
        if intensity not in INTENSITIES:
            raise InputError(f"intensity: {intensity!r} is not one of {', '.join(INTENSITIES)}")
        if precision not in PRECISIONS:
            raise InputError(f"precision: {precision!r} is not one of {', '.join(PRECISIONS)}")
        self.backbone_name = backbone
        self.backbone_options = dict(backbone_options or {})
        self.clip_size = [int(size) for size in clip_size]
        check_time_axis(time_axis)
        self.time_axis = time_axis
        self.volume_axes = list(TIME_AXES[time_axis])
        narrow, wide = (0.0, 0.0) if band_pass is None else _band(band_pass)
        self.band_pass = None if band_pass is None else dict(band_pass)
        self.narrow_kernel: Tensor
        self.wide_kernel: Tensor
        self.register_buffer("narrow_kernel", gaussian_kernel(narrow), persistent=False)
        self.register_buffer("wide_kernel", gaussian_kernel(wide), persistent=False)
        self.filters = self.band_pass is not None
        self.intensity = intensity
        self.mean = mean
        self.std = std
        self.precision = precision
        self.temperature = 1.0
        self.class_names = [f"class_{number}" for number in range(num_classes)]
        self.initialisation: dict[str, Any] = {"weights": None}
        self.freeze_batch_norm = False
        self._frozen: tuple[str, ...] = ()
        self.backbone, num_features = build_backbone(backbone, self.clip_size, **self.backbone_options)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(num_features, num_classes))
        self.memory_format = torch.channels_last_3d if channels_last else torch.contiguous_format
        self.backbone.to(memory_format=self.memory_format)

    @property
    def num_classes(self) -> int:
        """Number of class scores."""
        return len(self.class_names)

    def set_class_names(self, class_names: Sequence[str]) -> None:
        """Name the classes; the names are saved with the weights.

        Raises
        ------
        InputError
            When there are not as many names as classes.
        """
        if len(class_names) != self.num_classes:
            raise InputError(f"class_names: {len(class_names)} names for {self.num_classes} classes")
        self.class_names = [str(name) for name in class_names]

    def make_clips(self, volumes: Tensor, matrices: Tensor | None = None) -> Tensor:
        """Return what the backbone sees: `(B, 1, depth, height, width)`, standing for three equal channels."""
        volumes = put_time_first(volumes.float(), self.volume_axes)
        if self.filters:
            volumes = difference_of_gaussians(volumes, self.narrow_kernel, self.wide_kernel)
        clips = resample_clips(scale_intensity(volumes, self.intensity), self.clip_size, matrices)
        return (clips - self.mean) / self.std

    def extract_features(self, clips: Tensor) -> Tensor:
        """Return pooled features `(B, F)`, float32, of clips made by `make_clips`."""
        # TorchScript has neither these memory formats nor this autocast: it runs in float32.
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            exported: Tensor = self.backbone(clips)
            return exported
        return self._extract_features(clips)

    @torch.jit.unused
    def _extract_features(self, clips: Tensor) -> Tensor:
        if is_traced():  # an exported file is not to depend on the machine that wrote it
            exported: Tensor = self.backbone(clips)
            return exported
        clips = clips.contiguous(memory_format=self.memory_format)
        device = clips.device
        lower = self.precision == "bfloat16" or (self.precision == "auto" and has_fast_bfloat16(device))
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=lower):
            features: Tensor = self.backbone(clips)
        return features.float()

    def forward(self, volumes: Tensor, matrices: Tensor | None = None) -> Tensor:
        """Score volumes.

        Parameters
        ----------
        volumes : Tensor
            `(B, 1, z, y, x)`, any intensity range, any size.
        matrices : Tensor, optional
            `(B, 3, 3)` of random clips, see `RandomClips`.

        Returns
        -------
        Tensor
            Scores before softmax, `(B, num_classes)`, divided by ``temperature``: 1 in training, and what was fitted on
            the validation split in the best checkpoint.
        """
        scores: Tensor = self.head(self.extract_features(self.make_clips(volumes, matrices)))
        return scores / self.temperature

    def stage_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Return the backbone's parameters by stage: ``stem``, ``stage1`` to ``stage4``."""
        return {
            name: [p for key, p in self.backbone.named_parameters() if key.startswith(prefixes)]
            for name, prefixes in self._stages().items()
        }

    def freeze_stages(self, names: Sequence[str]) -> None:
        """Freeze these stages of the backbone and no others: no gradients, and evaluation mode also in training."""
        self._frozen = tuple(names)
        for name, parameters in self.stage_parameters().items():
            for parameter in parameters:
                parameter.requires_grad_(name not in self._frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> VideoClassifier:
        """Switch to training, but for what is frozen."""
        super().train(mode)
        stages = self._stages()
        for name in self._frozen:
            for prefix in stages[name]:
                self.backbone.get_submodule(prefix.rstrip(".")).eval()
        if self.freeze_batch_norm:
            for layer in self.backbone.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()
        return self

    def _stages(self) -> dict[str, tuple[str, ...]]:
        prefixes = look_up_backbone(self.backbone_name).stages
        return {"stem" if number == 0 else f"stage{number}": stage for number, stage in enumerate(prefixes)}

    def description(self) -> dict[str, Any]:
        """Everything that must agree before weights are exchanged, and the class names."""
        return {
            "backbone": self.backbone_name,
            "backbone_options": self.backbone_options,
            "clip_size": self.clip_size,
            "time_axis": self.time_axis,
            "band_pass": self.band_pass,
            "intensity": self.intensity,
            "mean": self.mean,
            "std": self.std,
            "temperature": self.temperature,
            "class_names": self.class_names,
        }

    def get_extra_state(self) -> Tensor:
        """Return the description as UTF-8 bytes of JSON: a tensor, so that every tool that saves weights keeps it.

        Spaces fill it to whole blocks of 8192 bytes: MONAI copies only tensors whose shapes agree, and would load
        weights without names and temperature.
        """
        text = json.dumps(self.description()).encode()
        return torch.tensor(list(text.ljust(8192 * math.ceil(len(text) / 8192))), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take class names, mean, std and temperature from a saved description: a checkpoint brings what it wants."""
        saved = read_description(state)
        self.set_class_names(saved["class_names"])
        self.mean, self.std = saved["mean"], saved["std"]
        self.temperature = saved["temperature"]


def _band(band_pass: Mapping[str, Any]) -> tuple[float, float]:
    """Return the two standard deviations of a band-pass in voxels."""
    known = isinstance(band_pass, Mapping) and set(band_pass) <= {"sigma", "voxel_size"}
    sigma = band_pass.get("sigma") if known else None
    if not isinstance(sigma, (list, tuple)) or len(sigma) != 2 or not 0 <= sigma[0] < sigma[1]:
        raise InputError(
            f'band_pass: {band_pass} must be {{"sigma": [narrow, wide]}}, 0 <= narrow < wide, with "voxel_size" if '
            "they are in Å"
        )
    voxel_size = band_pass.get("voxel_size", 1.0)
    if not voxel_size > 0:
        raise InputError(f"band_pass: voxel_size {voxel_size} must be positive")
    return sigma[0] / voxel_size, sigma[1] / voxel_size


def read_description(state: Tensor) -> dict[str, Any]:
    """Decode what `VideoClassifier.get_extra_state` made."""
    description: dict[str, Any] = json.loads(bytes(state.tolist()).decode())
    return {"temperature": 1.0} | description  # versions before 0.2 had none
