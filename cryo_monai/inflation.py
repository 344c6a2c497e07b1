"""Weights of 2-D image networks, inflated into the 3-D networks of the same make."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from cryo_monai.errors import InputError

INFLATIONS = ("average", "centre")


def is_image_state(state: Mapping[str, Tensor]) -> bool:
    """Whether tensors are those of a 2-D network: its largest kernels have two axes, and none has three."""
    return any(t.dim() == 4 for t in state.values()) and not any(t.dim() == 5 for t in state.values())


def inflate_kernel(kernel: Tensor, depth: int, how: str = "average") -> Tensor:
    """Give a 2-D convolution kernel a depth.

    Parameters
    ----------
    kernel : Tensor
        `(out, in, h, w)`.
    depth : int
        Size of the new axis.
    how : str
        ``"average"`` repeats the kernel and divides by the depth (Carreira & Zisserman 2017, arXiv 1705.07750);
        ``"centre"`` puts it into the middle slice and zeros elsewhere, which on a clip of equal frames gives the 2-D
        result even where padding cuts the kernel off.

    Returns
    -------
    Tensor
        `(out, in, depth, h, w)`.
    """
    if how == "average":
        return kernel[:, :, None].repeat(1, 1, depth, 1, 1) / depth
    inflated = kernel.new_zeros(kernel.shape[0], kernel.shape[1], depth, *kernel.shape[2:])
    # A kernel as long as its stride has no middle; any one slice gives the same on equal frames.
    inflated[:, :, depth // 2] = kernel
    return inflated


def inflate_state(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], how: str = "average") -> dict[str, Tensor]:
    """Turn the tensors of a 2-D network of torchvision into those of the 3-D network of the same make.

    ResNets keep their key names. Swin transformers have their patch embedding counted among the features in 2-D, and
    their position biases are repeated over all offsets in depth, as Video Swin does.

    Parameters
    ----------
    state : mapping of str to Tensor
        Of ``resnet18/34/50`` or ``swin_t/s/b``.
    wanted : mapping of str to Tensor
        Of the 3-D network; only shapes are looked at.
    how : str
        See `inflate_kernel`.

    Returns
    -------
    dict
        Keys and shapes of the 3-D network, as far as the 2-D network has them.

    Raises
    ------
    InputError
        For an unknown ``how``.
    """
    if how not in INFLATIONS:
        raise InputError(f"inflation: {how!r} is not one of {', '.join(INFLATIONS)}")
    inflated = {}
    for key, tensor in _renamed(state).items():
        target = wanted.get(key)
        if key.endswith("relative_position_index"):
            continue  # a constant of the network's shape, not a weight
        if target is not None and tensor.dim() == 4 and target.dim() == 5:
            inflated[key] = inflate_kernel(tensor, target.shape[2], how)
        elif target is not None and key.endswith("relative_position_bias_table"):
            inflated[key] = tensor.repeat(target.shape[0] // tensor.shape[0], 1)
        else:
            inflated[key] = tensor
    return inflated


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Count Swin's features from its first stage."""
    if "features.0.0.weight" not in state:
        return dict(state)
    renamed = {}
    for key, tensor in state.items():
        first, _, rest = key.partition(".")
        number, _, tail = rest.partition(".")
        if first != "features":
            renamed[key] = tensor
        elif number == "0":
            renamed[tail.replace("0.", "patch_embed.proj.", 1).replace("2.", "patch_embed.norm.", 1)] = tensor
        else:
            renamed[f"features.{int(number) - 1}.{tail}"] = tensor
    return renamed
