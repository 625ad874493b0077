"""Inpainting: a reward model of filled-in images, and what an inpainting denoiser is told.

The reward is linear in the last features, which is what the error bound of `trust` needs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from prefkit.diffusion.embedding import ImageEmbedder, load_embedder
from prefkit.diffusion.pipelines import PipelineCodec
from prefkit.diffusion.trust import RewardUncertainty, reward_regression_loss
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

    Raises:
        OptionError: the heads do not divide the width.

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
        self.sizes = {"embedding": embedding, "hidden": hidden, "features": features, "heads": heads}
        width = 2 * embedding
        if width % heads:
            raise OptionError(f"heads must divide {width}, twice the size of an embedding, got {heads}")
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


class InpaintingJudge:
    """A trained reward model with its embedder, and how certain its rewards are.

    Args:
        embedder: of images.
        reward: takes its embeddings; evaluated as it is, so put it into evaluation mode.
        trusted: from the features of the reward's training data.
    """

    def __init__(self, embedder: ImageEmbedder, reward: InpaintingReward, trusted: RewardUncertainty) -> None:
        self.embedder, self.reward, self.trusted = embedder, reward.eval().requires_grad_(False), trusted

    @torch.no_grad()
    def __call__(self, filled: Float[Tensor, "n 3 height width"], holes: Float[Tensor, "n dim"]) -> Rewarded:
        """Rewards and features of filled-in images.

        Args:
            filled: in [-1, 1].
            holes: embeddings of the images with their holes blacked out.
        """
        found: Rewarded = self.reward(self.embedder(filled), holes)
        return found

    def to(self, device: torch.device | str) -> InpaintingJudge:
        """Go to a device."""
        self.embedder.to(device)
        self.reward.to(device)
        self.trusted = RewardUncertainty(self.trusted.features.to(device), self.trusted.lam)
        return self

    def save(self, folder: Path) -> None:
        """Write what `load_inpainting_judge` reads: a folder that needs no other file."""
        self.embedder.save(folder / "embedder")
        options = {**self.reward.sizes, "shift": self.reward.shift, "scale": self.reward.scale, "lam": self.trusted.lam}
        (folder / _JUDGE).write_text(json.dumps(options, indent=1) + "\n", encoding="utf-8")
        save_file(
            {**self.reward.state_dict(), _FEATURES: self.trusted.features.contiguous()}, folder / "reward.safetensors"
        )


_JUDGE, _FEATURES = "inpainting_reward.json", "training_features"


def load_inpainting_judge(path: str | Path) -> InpaintingJudge:
    """A reward model of fillings that was trained by this package.

    Raises:
        OptionError: the folder holds none, or it cannot be read.
    """
    folder = Path(path)
    try:
        options = json.loads((folder / _JUDGE).read_text(encoding="utf-8"))
        lam = float(options.pop("lam"))
        weights = load_file(folder / "reward.safetensors")
        features = weights.pop(_FEATURES)
        reward = InpaintingReward(**options)
        reward.load_state_dict(weights)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise OptionError(f"{folder} holds no reward model of fillings: {str(error).splitlines()[0]}") from error
    return InpaintingJudge(load_embedder(str(folder / "embedder")), reward, RewardUncertainty(features, lam))


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
