"""Embeddings of images by the vision half of a CLIP model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from prefkit.errors import OptionError

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels that CLIP was trained on (Radford et al. 2021)."""


def clip_pixels(images: Float[Tensor, "n 3 height width"], side: int) -> Float[Tensor, "n 3 side side"]:
    """Images in [-1, 1] as a CLIP model takes them."""
    mean, std = (torch.tensor(values, device=images.device).reshape(1, 3, 1, 1) for values in (_MEAN, _STD))
    pixels = interpolate((images.float() + 1) / 2, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
    return (pixels - mean) / std


class ImageEmbedder:
    """The projected embedding of a CLIP model, as it is, without scaling to length 1.

    Args:
        model: a `CLIPVisionModelWithProjection`.

    Attributes:
        size: of an embedding.
        side: height and width at which the model sees an image.
    """

    def __init__(self, model: Any) -> None:
        self.model = model.eval().requires_grad_(False)
        self.size, self.side = int(model.config.projection_dim), int(model.config.image_size)

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n dim"]:
        """Embeddings of images in [-1, 1], on the device of the model."""
        pixels = clip_pixels(images.to(self.model.device), self.side)
        found: Tensor = self.model(pixel_values=pixels.to(self.model.dtype)).image_embeds
        return found.float()

    def to(self, device: torch.device | str) -> ImageEmbedder:
        """Go to a device."""
        self.model.to(device)
        return self

    def save(self, folder: Path) -> None:
        """Write what `load_embedder` reads."""
        self.model.save_pretrained(folder, safe_serialization=True)


def load_embedder(path: str) -> ImageEmbedder:
    """The vision half of a CLIP model.

    Args:
        path: folder or hub name of a CLIP model, or of its vision half with the projection.

    Raises:
        OptionError: it cannot be loaded, or is no such model.
    """
    from transformers import AutoConfig, CLIPVisionModelWithProjection

    try:
        config = AutoConfig.from_pretrained(path)
        if config.model_type == "clip":
            # A whole model says the size of its projection beside its halves.
            config, size = config.vision_config, config.projection_dim
            config.projection_dim = size
        model, found = CLIPVisionModelWithProjection.from_pretrained(
            path, config=config, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, AttributeError) as error:
        raise OptionError(f"the embedder '{path}' cannot be loaded: {str(error).splitlines()[0]}") from error
    # transformers would go on with random weights.
    if found["missing_keys"]:
        raise OptionError(f"the embedder '{path}' is no CLIP model: it lacks {sorted(found['missing_keys'])[0]}")
    return ImageEmbedder(model)
