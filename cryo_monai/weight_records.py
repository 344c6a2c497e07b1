"""One frozen record per checkpoint, public or made here: where it is, what of, and what input it was trained on.

Nothing here downloads or imports torch. Hashes are not written by hand: ``cryo-monai weights pin`` takes them on a
connected machine and keeps them in ``weight_pins.json`` beside this file, or in the cache of the user.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from cryo_monai.errors import InputError

Channels = tuple[float, float, float]
# What ``--weights`` takes besides names of records and files: the backbone's first record of that kind.
KINDS = ("video", "image", "generated")
OWN_LAYOUT = "cryo-monai"  # what `write_weights` makes


@dataclass(frozen=True)
class InputRecord:
    """What values a checkpoint saw: an intensity in [0, 1] became ``low + (high - low) * x``, less mean, over std.

    Attributes
    ----------
    low, high : float
        What 0 and 1 became.
    mean, std : tuple of float
        Per channel, in the units of low and high.
    intensity : str
        ``"unit"`` for that; ``"z_score"`` for checkpoints trained on volumes standardised one by one, where the numbers
        above have no meaning.
    """

    low: float = 0.0
    high: float = 1.0
    mean: Channels = (0.0, 0.0, 0.0)
    std: Channels = (1.0, 1.0, 1.0)
    intensity: str = "unit"

    def mean_and_std(self) -> tuple[float, float]:
        """Return m and s so that ``(x - m) / s`` maps x in [0, 1] to what the checkpoint saw.

        One mean and one std stand for all channels: that keeps the folding of replicated channels exact at zero-padded
        borders. The channels of any record differ from their average by less than a tenth of the intensity range.
        """
        if self.intensity == "z_score":
            return 0.0, 1.0
        span = self.high - self.low
        return (sum(self.mean) / 3 - self.low) / span, sum(self.std) / 3 / span


@dataclass(frozen=True)
class WeightRecord:
    """A public checkpoint, or one of this package.

    Attributes
    ----------
    name : str
        Of the record; `weights list` shows all.
    backbone : str
        Key of `cryo_monai.backbones.BACKBONES` that it fits.
    url : str
        Of the file, or of the folder it lies in when ``manual``; empty when it is shipped with this package.
    file : str
        Its published name.
    layout : str
        Who wrote it: decides nesting and key names.
    classes : int
        Outputs of its classifier, by which files of equal keys are told apart.
    dataset, licence, citation : str
        What it was trained on, its terms, whom to cite; for one of this package the command that makes it.
    clip : tuple of int
        ``(D, H, W)`` it was trained on; D is 1 for images.
    input : InputRecord
        What values it saw; a file of this package says that itself.
    top1 : float or None
        Published accuracy on its data set, in %.
    mebibytes : float or None
        Published size.
    sha256_prefix : str
        The part of the hash that the publisher put into the file name.
    manual : bool
        True when only a browser gets it.
    """

    name: str
    backbone: str
    url: str
    file: str
    layout: str
    classes: int
    dataset: str
    licence: str
    citation: str
    clip: tuple[int, int, int]
    input: InputRecord
    top1: float | None = None
    mebibytes: float | None = None
    sha256_prefix: str = ""
    manual: bool = False

    @property
    def is_image(self) -> bool:
        """Whether it is a 2-D network, to be inflated."""
        return self.layout == "torchvision-image"

    @property
    def is_shipped(self) -> bool:
        """Whether its file comes with this package."""
        return not self.url


# 3D-ResNets-PyTorch: first release (opts.py: ActivityNet's mean, values to 255, no division), and second release.
HARA_OLD = InputRecord(high=255.0, mean=(114.7748, 107.7354, 99.4750))
HARA_NEW = InputRecord(mean=(0.4345, 0.4051, 0.3775), std=(0.2768, 0.2713, 0.2737))
# torchvision: the transforms of each weights enum.
KINETICS = InputRecord(mean=(0.43216, 0.394666, 0.37645), std=(0.22803, 0.22145, 0.216989))
IMAGENET = InputRecord(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
# PyTorchVideo's model zoo and torchvision's MViT.
FACEBOOK = InputRecord(mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225))
# Scenic, projects/vivit/configs/kinetics400/vivit_base_k400.py: zero_centering, which is 2 x - 1 and no more. The
# processor file that transformers has beside the weights does that, then subtracts 0.5 and divides by 0.5: [-3, 1].
VIVIT = InputRecord(low=-1.0)
# bundles/generated_pretraining.
OWN = InputRecord(mean=(0.5, 0.5, 0.5), std=(0.15, 0.15, 0.15))
# MedicalNet, datasets/brains18.py: volumes standardised over their non-zero voxels.
STANDARDISED = InputRecord(intensity="z_score")

_HARA_OLD_URL = "https://drive.google.com/drive/folders/1zvl89AgFAApbH0At-gMuZSeQB_LpNP-M"
_HARA_NEW_URL = "https://drive.google.com/drive/folders/1xbYbZ7rpyjftI_KCk6YuL-XrfQDz7Yd4"
_HARA = "Hara, Kataoka, Satoh, CVPR 2018, arXiv 1711.09577"
_TORCHVISION = "https://download.pytorch.org/models/"
_PYTORCHVIDEO = "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/"


def _hara_old(backbone: str, file: str, top1: float) -> WeightRecord:
    return WeightRecord(
        f"{backbone}-kinetics400", backbone, _HARA_OLD_URL, file, "hara-2017", 400,
        "Kinetics-400", "MIT", _HARA, (16, 112, 112), HARA_OLD, top1, manual=True,
    )  # fmt: skip


def _hara_new(backbone: str, depth: int, flag: str, classes: int, dataset: str) -> WeightRecord:
    citation = "Kataoka, Wakamiya, Hara, Satoh 2020, arXiv 2004.04968"
    name = f"{backbone}-{''.join(c for c in dataset.lower() if c.isalnum())}"
    return WeightRecord(
        name, backbone, _HARA_NEW_URL, f"r3d{depth}_{flag}_200ep.pth",
        "hara-2020", classes, dataset, "MIT", citation, (16, 112, 112), HARA_NEW, manual=True,
    )  # fmt: skip


def _medicalnet(depth: int) -> WeightRecord:
    file = f"resnet_{depth}_23dataset.pth"
    return WeightRecord(
        f"medicalnet_resnet{depth}-23datasets", f"medicalnet_resnet{depth}",
        f"https://huggingface.co/TencentMedicalNet/MedicalNet-Resnet{depth}/resolve/main/{file}", file, "medicalnet", 0,
        "23 medical data sets", "MIT", "Chen, Ma, Zheng 2019, arXiv 1904.00625", (56, 448, 448), STANDARDISED,
    )  # fmt: skip


def _torchvision(
    backbone: str, file: str, clip: tuple[int, int, int], values: InputRecord, top1: float, mebibytes: float,
    citation: str, *, name: str = "", dataset: str = "Kinetics-400",
) -> WeightRecord:  # fmt: skip
    layout, classes = ("torchvision", 400) if dataset.startswith("Kinetics") else ("torchvision-image", 1000)
    return WeightRecord(
        name or f"{backbone}-kinetics400", backbone, _TORCHVISION + file, file, layout, classes, dataset,
        "BSD-3-Clause", citation, clip, values, top1, mebibytes,
        sha256_prefix=file.removesuffix(".pth").rsplit("-", 1)[-1],
    )  # fmt: skip


def _image(backbone: str, file: str, top1: float, mebibytes: float, citation: str, *, suffix: str = "") -> WeightRecord:
    return _torchvision(
        backbone, file, (1, 224, 224), IMAGENET, top1, mebibytes, citation,
        name=f"{backbone}-imagenet{suffix}", dataset="ImageNet-1K",
    )  # fmt: skip


def _pytorchvideo(backbone: str, file: str, clip: tuple[int, int, int], top1: float, citation: str) -> WeightRecord:
    return WeightRecord(
        f"{backbone}-kinetics400", backbone, _PYTORCHVIDEO + file, file, "pytorchvideo", 400,
        "Kinetics-400", "Apache-2.0", citation, clip, FACEBOOK, top1,
    )  # fmt: skip


def _generated(backbone: str, task: str, clip: tuple[int, int, int], classes: int, mebibytes: float) -> WeightRecord:
    name = f"{backbone}-generated"
    return WeightRecord(
        name, backbone, "", f"{name}.safetensors", OWN_LAYOUT, classes, "generated clips", "Apache-2.0",
        f"cryo-monai pretrain configs/pretraining/{task}.json DIR --backbone {backbone}", clip, OWN,
        mebibytes=mebibytes,
    )  # fmt: skip


_SLOWFAST = "Feichtenhofer, Fan, Malik, He 2019, arXiv 1812.03982"
_NONLOCAL = "Wang, Girshick, Gupta, He 2018, arXiv 1711.07971"
_I3D = "Carreira, Zisserman 2017, arXiv 1705.07750"
_X3D = "Feichtenhofer 2020, arXiv 2004.04730"
_R2PLUS1D = "Tran et al. 2018, arXiv 1711.11248"
_CSN = "Tran, Wang, Torresani, Feiszli 2019, arXiv 1904.02811"
_MVIT = "Fan et al. 2021, arXiv 2104.11227"
_MVIT2 = "Li et al. 2022, arXiv 2112.01526"
_S3D = "Xie, Sun, Huang, Tu, Murphy 2018, arXiv 1712.04851"
_SWIN3D = "Liu et al. 2022, arXiv 2106.13230"
_SWIN = "Liu et al. 2021, arXiv 2103.14030"
_RESNET = "He, Zhang, Ren, Sun 2016, arXiv 1512.03385"

_SMALL, _LARGE = (16, 112, 112), (32, 224, 224)

_SWIN3D_B_22K = _torchvision(
    "swin3d_b", "swin3d_b_22k-7c6ae6fa.pth", _LARGE, IMAGENET, 81.643, 364.134, _SWIN3D,
    name="swin3d_b-imagenet22k-kinetics400",
)  # fmt: skip
_VIVIT_B = WeightRecord(
    "vivit_b_16x2-kinetics400", "vivit_b_16x2",
    "https://huggingface.co/google/vivit-b-16x2-kinetics400/resolve/main/pytorch_model.bin", "pytorch_model.bin",
    "transformers", 400, "Kinetics-400", "MIT", "Arnab et al. 2021, arXiv 2103.15691", _LARGE, VIVIT,
)  # fmt: skip

# Video records of a backbone come before its image records; the first is what ``--weights video`` takes.
RECORDS: tuple[WeightRecord, ...] = (
    _hara_old("resnet18", "resnet-18-kinetics.pth", 54.2),
    _hara_old("resnet34", "resnet-34-kinetics-cpu.pth", 60.1),
    _hara_old("resnet50", "resnet-50-kinetics.pth", 61.3),
    _hara_new("resnet18_b", 18, "K", 700, "Kinetics-700"),
    _hara_new("resnet34_b", 34, "K", 700, "Kinetics-700"),
    _hara_new("resnet50", 50, "K", 700, "Kinetics-700"),
    _hara_new("resnet18_b", 18, "KM", 1039, "Kinetics-700 + MiT"),
    _hara_new("resnet34_b", 34, "KM", 1039, "Kinetics-700 + MiT"),
    _hara_new("resnet50", 50, "KM", 1039, "Kinetics-700 + MiT"),
    _medicalnet(18),
    _medicalnet(34),
    _medicalnet(50),
    _pytorchvideo("slow_r50", "SLOW_8x8_R50.pyth", (8, 224, 224), 74.58, _SLOWFAST),
    _pytorchvideo("c2d_r50", "C2D_8x8_R50.pyth", (8, 224, 224), 71.46, _NONLOCAL),
    _pytorchvideo("i3d_r50", "I3D_8x8_R50.pyth", (8, 224, 224), 73.27, _I3D),
    _pytorchvideo("x3d_xs", "X3D_XS.pyth", (4, 160, 160), 69.12, _X3D),
    _pytorchvideo("x3d_s", "X3D_S.pyth", (13, 160, 160), 73.33, _X3D),
    _pytorchvideo("x3d_m", "X3D_M.pyth", (16, 224, 224), 75.94, _X3D),
    _pytorchvideo("x3d_l", "X3D_L.pyth", (16, 312, 312), 77.44, _X3D),
    _pytorchvideo("r2plus1d_r50", "R2PLUS1D_16x4_R50.pyth", (16, 224, 224), 76.01, _R2PLUS1D),
    _pytorchvideo("csn_r101", "CSN_32x2_R101.pyth", _LARGE, 77.0, _CSN),
    _pytorchvideo("mvit_base_16x4", "MVIT_B_16x4.pyth", (16, 224, 224), 78.9, _MVIT),
    _pytorchvideo("mvit_base_32x3", "MVIT_B_32x3_f294077834.pyth", _LARGE, 80.3, _MVIT),
    _torchvision("r3d_18", "r3d_18-b3b3357e.pth", _SMALL, KINETICS, 63.2, 127.359, _R2PLUS1D),
    _torchvision("mc3_18", "mc3_18-a90a0ba3.pth", _SMALL, KINETICS, 63.96, 44.672, _R2PLUS1D),
    _torchvision("r2plus1d_18", "r2plus1d_18-91a641e6.pth", _SMALL, KINETICS, 67.463, 120.318, _R2PLUS1D),
    _torchvision("s3d", "s3d-d76dad2f.pth", (64, 224, 224), KINETICS, 68.368, 31.972, _S3D),
    _torchvision("mvit_v2_s", "mvit_v2_s-ae3be167.pth", (16, 224, 224), FACEBOOK, 80.757, 131.884, _MVIT2),
    _torchvision("swin3d_t", "swin3d_t-7615ae03.pth", _LARGE, IMAGENET, 77.715, 121.543, _SWIN3D),
    _torchvision("swin3d_s", "swin3d_s-da41c237.pth", _LARGE, IMAGENET, 79.521, 218.288, _SWIN3D),
    _SWIN3D_B_22K,
    _torchvision("swin3d_b", "swin3d_b_1k-24f7c7c6.pth", _LARGE, IMAGENET, 79.427, 364.134, _SWIN3D),
    _VIVIT_B,
    _image("resnet18_b", "resnet18-f37072fd.pth", 69.758, 44.661, _RESNET),
    _image("resnet34_b", "resnet34-b627a593.pth", 73.314, 83.275, _RESNET),
    _image("resnet50", "resnet50-11ad3fa6.pth", 80.858, 97.79, _RESNET, suffix="-v2"),
    _image("resnet50", "resnet50-0676ba61.pth", 76.13, 97.781, _RESNET),
    _image("swin3d_t", "swin_t-704ceda3.pth", 81.474, 108.19, _SWIN),
    _image("swin3d_s", "swin_s-5e29d889.pth", 83.196, 189.786, _SWIN),
    _image("swin3d_b", "swin_b-68c6b09e.pth", 83.582, 335.364, _SWIN),
)

# Made by `cryo-monai pretrain`; files without a URL lie in generated_weights/ beside this one.
GENERATED: tuple[WeightRecord, ...] = (_generated("resnet18_narrow", "assemblies", (24, 24, 24), 64, 3.985),)


def all_records() -> tuple[WeightRecord, ...]:
    """Return the records of public checkpoints, then those of this package's own."""
    return (*RECORDS, *GENERATED)


def look_up_record(name: str) -> WeightRecord:
    """Return the record of that name.

    Raises
    ------
    InputError
        With the nearest name.
    """
    by_name = {record.name: record for record in all_records()}
    if name not in by_name:
        near = [known for known in by_name if known.startswith(f"{name}-")] or get_close_matches(name, by_name, n=1)
        hint = f"; did you mean {near[0]}?" if near else "; `cryo-monai weights list` shows all"
        raise InputError(f"{name}: no such weights{hint}")
    return by_name[name]


def default_record(backbone: str, *, image: bool = False) -> WeightRecord:
    """Return the first video record of a backbone (of volumes, for MedicalNet), or its first image record.

    Raises
    ------
    InputError
        When there is none.
    """
    for record in RECORDS:
        if record.backbone == backbone and record.is_image == image:
            return record
    kind = "image" if image else "video"
    raise InputError(
        f"backbone {backbone!r} has no public {kind} weights; `cryo-monai weights list` shows what there is"
    )


def generated_record(backbone: str) -> WeightRecord:
    """Return the first record of this package's own weights for a backbone.

    Raises
    ------
    InputError
        When there is none, with the command that makes some.
    """
    for record in GENERATED:
        if record.backbone == backbone:
            return record
    command = f"cryo-monai pretrain configs/pretraining/assemblies.json DIR --backbone {backbone}"
    raise InputError(
        f"backbone {backbone!r} has no generated weights; make them (`{command}`), then give "
        "--weights DIR/weights.safetensors; or --weights None for random ones"
    )
