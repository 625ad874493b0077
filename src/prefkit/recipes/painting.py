"""PrefPaint on an inpainting pipeline: policy gradients of a reward of fillings, by how certain it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from prefkit.diffusion import (
    AmplifiedPolicyGradient,
    DiffusionScorer,
    InpaintingJudge,
    PipelineCodec,
    WinRate,
    amplification,
    blacked_out,
    inpainting_condition,
    read_holes,
    win_rate_of,
)
from prefkit.errors import OptionError, PrefkitError, RecordError
from prefkit.options import Options


class PrefPaintOptions(Options):
    """Policy gradients for an inpainting pipeline; see `prefkit.diffusion.AmplifiedPolicyGradient`."""

    kind: Literal["prefpaint"]
    reward: str = Field(description="folder of a reward model of fillings (model.kind: inpainting_reward)")
    steps: int = Field(50, ge=2, description="of the stochastic sampler")
    transitions: int = Field(5, ge=1, description="of each run that are trained, with an update after each")
    refresh: int = Field(15, ge=1, description="rounds between two refreshes of the copy that samples")
    clip_range: float = Field(1e-4, gt=0, description="of the probability ratio")
    advantage_clip: float = Field(10.0, gt=0, description="bound of the normalised rewards")
    eta: float = Field(1.0, gt=0, description="randomness of the sampler")
    anchor: float = Field(0.0, ge=0, description="weight of the distance from the sampling copy's transitions")
    norm: Literal["paper", "released"] = Field("released", description="uncertainty; k and b fit `released`")
    k: float = Field(0.05, ge=0, description="how fast the factor of a sample falls with its uncertainty")
    b: float = Field(0.7, description="logarithm of the factor where nothing is uncertain")
    lo: float = Field(1.0, gt=0, description="least factor; with hi = 1 as well, uncertainty plays no part")
    hi: float = Field(2.21, gt=0, description="greatest factor")


class EncodedHole(NamedTuple):
    """A hole as the loop takes it.

    Args:
        cond: what the denoiser is told, without a batch.
        seen: embedding of the image with its hole blacked out.
        picture: that image, in [-1, 1].
        key: digest of image, mask and caption.
    """

    cond: dict[str, Tensor]
    seen: Tensor
    picture: Tensor
    key: str


class Holes:
    """The holes of a file, encoded.

    Args:
        scorer: an inpainting pipeline.
        judge: embeds the images.
        path: the file, see `prefkit.diffusion.read_holes`.
        limit: of rows.
        strict: the first row that cannot be used is an error.

    Attributes:
        items: the holes.
        skipped: rows that were set aside.

    Raises:
        OptionError: the pipeline fills nothing in.
        RecordError: a row cannot be used.
        PrefkitError: none can be.
    """

    def __init__(
        self, scorer: DiffusionScorer, judge: InpaintingJudge, path: Path, *, limit: int | None, strict: bool
    ) -> None:
        codec = scorer.codec
        if not isinstance(codec, PipelineCodec) or not codec.inpainting:
            raise OptionError("method prefpaint needs an inpainting pipeline, whose denoiser takes a mask")
        self.skipped: list[RecordError] = []
        self.items: list[EncodedHole] = []
        codec.wake(scorer.device)
        for row in read_holes(path, codec.resolution, limit):
            if isinstance(row, RecordError):
                if strict:
                    raise row
                self.skipped.append(row)
                continue
            image, mask = row.image[None], row.mask[None]
            told = inpainting_condition(codec, image, mask, row.caption)
            black = blacked_out(image, mask)
            key = hashlib.sha256(row.caption.encode() + image.numpy().tobytes() + mask.numpy().tobytes()).hexdigest()
            cond = {name: value[0].cpu() for name, value in told.items()}
            self.items.append(EncodedHole(cond, judge.embedder(black)[0].cpu(), black[0], key))
        if not self.items:
            raise PrefkitError(f"{path}: no hole can be used" + (f"; {self.skipped[0]}" if self.skipped else ""))


def together(holes: Sequence[EncodedHole]) -> tuple[dict[str, Tensor], Tensor]:
    """Conditions and embeddings of several holes as batches."""
    cond = {name: torch.stack([hole.cond[name] for hole in holes]) for name in holes[0].cond}
    return cond, torch.stack([hole.seen for hole in holes])


class Painting:
    """The loop; see `prefkit.recipes.image_loops.Loop`.

    Args:
        scorer: the pipeline.
        holes: that are filled in.
        judge: rewards fillings.
        method: options.
        batch: holes a round, at least two.
        generator: source of randomness, on the CPU.

    Raises:
        OptionError: the batch is too small, or an option is out of range.
    """

    def __init__(
        self,
        scorer: DiffusionScorer,
        holes: Sequence[EncodedHole],
        judge: InpaintingJudge,
        method: PrefPaintOptions,
        batch: int,
        generator: torch.Generator,
    ) -> None:
        if batch < 2:
            raise OptionError("training.batch_size must be at least 2: rewards are compared within a batch")
        assert isinstance(scorer.codec, PipelineCodec)
        self.scorer, self.codec, self.holes, self.judge = scorer, scorer.codec, holes, judge
        self.method, self.batch, self.generator = method, batch, generator
        how = method.model_dump(
            include={"steps", "transitions", "refresh", "clip_range", "advantage_clip", "eta", "anchor"}
        )
        self.gradient = AmplifiedPolicyGradient(scorer.denoiser, scorer.schedule, self._reward, **how)
        self.state, self.load_state = self.gradient.state, self.gradient.load_state
        self._seen = torch.empty(0)
        self._figures: dict[str, float] = {}

    def round(self) -> Iterator[Tensor]:
        """Fill in a batch of holes, and learn from some transitions."""
        # Fillings are decoded for the reward, so the VAE cannot rest.
        self.codec.wake(self.scorer.device)
        places = torch.randint(len(self.holes), (self.batch,), generator=self.generator).tolist()
        cond, seen = together([self.holes[place] for place in places])
        device = self.scorer.device
        self._seen = seen.to(device)
        cond = {name: value.to(device) for name, value in cond.items()}
        yield from self.gradient.losses((self.batch, *self.codec.shape), self.generator, cond)

    def after_update(self) -> None:
        """Nothing: the sampling copy is refreshed round by round."""

    def figures(self) -> dict[str, float]:
        """Mean reward and mean factor of the last round."""
        return self._figures

    def finish(self) -> None:
        """Nothing to do."""

    def _reward(self, samples: Tensor, cond: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        found = self.judge(self.codec.decode(samples), self._seen)
        u, options = self.judge.trusted.norm(found.features, self.method.norm), self.method
        factors = amplification(u, k=options.k, b=options.b, lo=options.lo, hi=options.hi)
        self._figures = {"reward": float(found.rewards.mean()), "factor": float(factors.mean())}
        return found.rewards, factors


def compared(judge: InpaintingJudge, holes: Sequence[EncodedHole], after: Tensor, before: Tensor) -> WinRate:
    """Fillings of two models of the same holes, by the reward.

    Args:
        judge: rewards fillings.
        holes: that were filled in.
        after: of the first model, in [-1, 1].
        before: of the second model.
    """
    seen = together(holes)[1]
    device: Any = judge.embedder.model.device

    def score(images: Tensor, captions: Sequence[str]) -> Tensor:
        return judge(images, seen.to(device)).rewards.cpu()

    return win_rate_of(score, after, before, [hole.key for hole in holes])
