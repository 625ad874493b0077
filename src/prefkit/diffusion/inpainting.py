"""Inpainting: a reward model of filled-in images, and what an inpainting denoiser is told.

The reward is linear in the last features, which is what the error bound of `trust` needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from prefkit.diffusion.pipelines import PipelineCodec
from prefkit.diffusion.trust import reward_regression_loss
from prefkit.errors import OptionError
from prefkit.objectives import reward_model_loss


class Rewarded(NamedTuple):
    """Rewards of filled-in images, and the features in which they are linear."""

    rewards: Float[Tensor, " batch"]
    features: Float[Tensor, "batch dim"]


class InpaintingReward(nn.Module):
    """A reward model on embeddings of a filled-in image and of the image with its hole.

    Both embeddings, joined, go through one transformer layer and two linear ones to the features; the reward is linear
    in them, without a bias.

    Args:
        embedding: size of an embedding; 512 for CLIP ViT-B/32.
        hidden: size of the layer before the features.
        features: size of the features.
        heads: attention heads of the transformer layer.
        shift: what is taken from the output; the released model's is 0.4064.
        scale: what it is divided by; the released model's is 2.3021.

    Source: Liu et al. 2024 (PrefPaint, arXiv 2410.21966), released model.
    """

    def __init__(
        self,
        embedding: int = 512,
        hidden: int = 512,
        features: int = 256,
        heads: int = 16,
        *,
        shift: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        width = 2 * embedding
        self.mix = nn.TransformerEncoderLayer(width, heads, width, dropout=0.1, batch_first=True)
        self.body = nn.Sequential(nn.Linear(width, hidden), nn.Dropout(0.2), nn.Linear(hidden, features))
        self.head = nn.Linear(features, 1, bias=False)
        self.shift, self.scale = shift, scale
        for layer in (self.body[0], self.body[2], self.head):
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=(width + 1) ** -0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, filled: Float[Tensor, "batch dim"], hole: Float[Tensor, "batch dim"]) -> Rewarded:
        """Rewards and features; in evaluation mode, so that both are certain.

        Args:
            filled: embeddings of the filled-in images.
            hole: embeddings of the images with the hole blacked out.
        """
        mixed = self.mix(torch.cat([filled, hole], 1)[:, None])[:, 0]
        features = self.body(mixed)
        return Rewarded((self.head(features)[:, 0] - self.shift) / self.scale, features)

    def losses(
        self,
        better: Rewarded,
        worse: Rewarded,
        better_scores: Float[Tensor, " batch"] | None = None,
        worse_scores: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """Ranking losses of pairs, or, with (normalised) scores of people, regression on both.

        Args:
            better: the better of each two fillings.
            worse: the worse one.
            better_scores: people's score of the better one.
            worse_scores: people's score of the worse one.

        Raises:
            OptionError: only one side has scores.
        """
        if (better_scores is None) != (worse_scores is None):
            raise OptionError("a regression needs the scores of both sides")
        if better_scores is None or worse_scores is None:
            return reward_model_loss(better.rewards, worse.rewards)
        return (
            reward_regression_loss(better.rewards, better_scores) + reward_regression_loss(worse.rewards, worse_scores)
        ) / 2


def inpainting_condition(
    codec: PipelineCodec,
    images: Float[Tensor, "batch 3 height width"],
    masks: Float[Tensor, "batch 1 height width"],
    caption: str = "",
) -> dict[str, Tensor]:
    """What an inpainting denoiser is told: the caption, where the hole is, and the latents of what is around it.

    Args:
        codec: of an inpainting pipeline, whose denoiser takes nine channels.
        images: in [-1, 1].
        masks: 1 where it is to be filled in, else 0.
        caption: of all images; empty as in the paper.

    Returns:
        A condition for `denoiser(x_t, t, cond)`.

    Raises:
        OptionError: the pipeline fills nothing in, the masks are not 0 and 1, or sizes do not fit.
    """
    if not codec.inpainting:
        raise OptionError("this pipeline fills nothing in: its denoiser does not take a mask")
    if images.shape[0] != masks.shape[0] or images.shape[2:] != masks.shape[2:] or masks.shape[1] != 1:
        raise OptionError(
            f"each image needs a mask of one channel and its size, got {tuple(images.shape)}, {tuple(masks.shape)}"
        )
    if not bool(((masks == 0) | (masks == 1)).all()):
        raise OptionError("masks must be 1 where an image is to be filled in, and 0 elsewhere")
    around = codec.latents(images * (masks < 0.5))
    told = codec.condition(caption)
    cond = {name: value.expand(len(images), *value.shape) for name, value in told.items()}
    return {**cond, "mask": interpolate(masks, size=around.shape[2:]), "masked": around}


def with_empty_prompt(cond: Mapping[str, Tensor], codec: PipelineCodec) -> dict[str, Tensor]:
    """The same condition for the empty caption: the negative branch of guidance sees the same hole."""
    empty: dict[str, Any] = {
        name: value.expand(len(cond["mask"]), *value.shape) for name, value in codec.empty().items()
    }
    return {**empty, "mask": cond["mask"], "masked": cond["masked"]}
