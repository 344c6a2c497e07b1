"""ViViT-B 16x2 of Hugging Face's transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from cryo_monai.backbones.layers import recompute_activations
from cryo_monai.errors import InputError


class ViViT(nn.Module):
    """Video vision transformer with joint space-time attention (Arnab et al. 2021, arXiv 2103.15691).

    Parameters
    ----------
    clip_size : sequence of int
        Multiples of 2, 16 and 16.
    gradient_checkpointing : bool
        Compute activations again in the backward pass instead of keeping them.
    """

    def __init__(self, clip_size: Sequence[int], *, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        try:
            from transformers import VivitConfig, VivitModel
        except ImportError as error:
            raise InputError(f"vivit_b_16x2 needs transformers ({error}): pip install 'cryo-monai[vivit]'") from error
        depth, height, width = clip_size
        # The defaults of the configuration are ViViT-B 16x2.
        config = VivitConfig(num_frames=depth, image_size=[height, width])
        model: Any = VivitModel(config, add_pooling_layer=False)
        self.vivit = model
        self.num_features = int(config.hidden_size)
        nn.init.trunc_normal_(model.embeddings.position_embeddings, std=config.initializer_range)
        nn.init.trunc_normal_(model.embeddings.cls_token, std=config.initializer_range)
        if gradient_checkpointing:
            recompute_activations(model.layers)

    def forward(self, clips: Tensor) -> Tensor:
        """Map `(B, C, D, H, W)` to the class token `(B, 768)`."""
        tokens: Tensor = self.vivit(clips.transpose(1, 2)).last_hidden_state
        return tokens[:, 0]
