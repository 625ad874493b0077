"""Drawing: images of a pipeline for captions and seeds, also with a negative model in the other branch of guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from prefkit.diffusion.guidance import NegativeGuidance, guided
from prefkit.diffusion.pipelines import PipelineCodec
from prefkit.diffusion.sampling import predicting_noise, sample
from prefkit.diffusion.scorer import DiffusionScorer
from prefkit.errors import OptionError


@torch.no_grad()
def draw_images(
    scorer: DiffusionScorer,
    captions: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = 50,
    guidance: float = 7.5,
    rescale: float = 0.0,
    eta: float = 0.0,
    negative: DiffusionScorer | None = None,
    batch_size: int = 8,
) -> Float[Tensor, "n channels height width"]:
    """One image for each caption and seed, by the implicit sampler. A seed gives the same noise to every model.

    Args:
        scorer: a pipeline as a scorer, see `load_pipeline`.
        captions: what to draw.
        seeds: of the noise; one a caption.
        steps: of the sampler.
        guidance: scale s of classifier-free guidance; 1 is none.
        rescale: see `guided`.
        eta: randomness of the steps, in [0, 1].
        negative: a negative model, whose prediction for the empty caption takes the place of the policy's own.
        batch_size: images that are drawn together.

    Returns:
        Images in [-1, 1].

    Raises:
        OptionError: the scorer is no pipeline, the schedule matches flows and the sampler does not serve it, or the
            numbers of captions and seeds differ.
        RecordError: a caption is no label of the model.
    """
    codec = scorer.codec
    if not isinstance(codec, PipelineCodec):
        raise OptionError("images are drawn from pipelines; use prefkit.diffusion.sample for other denoisers")
    if codec.inpainting:
        raise OptionError("this pipeline fills in holes, which captions alone do not have; see fill_holes")
    if len(captions) != len(seeds):
        raise OptionError(f"each caption needs a seed, got {len(captions)} and {len(seeds)}")
    if not captions:
        raise OptionError("there are no captions to draw")
    scorer.eval()
    codec.wake(scorer.device)
    other = negative or scorer
    other.eval()
    models = [predicting_noise(each.denoiser, each.schedule) for each in (scorer, other)]
    drawn = []
    for start in range(0, len(captions), batch_size):
        own = slice(start, start + batch_size)
        cond = _conditions(codec, captions[own], scorer.device)
        noise = _noise(codec, seeds[own]).to(scorer.device)
        generator = torch.Generator().manual_seed(seeds[start])
        if scorer.schedule.prediction == "flow":
            x = _flow(scorer, other, noise, cond, steps, guidance)
        else:
            guiding = guidance != 1 and len(cond) > 0
            model: Any = NegativeGuidance(models[0], models[1], guidance, rescale) if guiding else models[0]
            told = (cond, _conditions(codec, [""] * len(noise), scorer.device)) if guiding else cond
            run = sample(model, noise, scorer.schedule, count=steps, cond=told, eta=eta, generator=generator)
            x = run.sample
        drawn.append(codec.decode(x).cpu())
    return torch.cat(drawn)


@torch.no_grad()
def fill_holes(
    scorer: DiffusionScorer,
    cond: Mapping[str, Tensor],
    seeds: Sequence[int],
    *,
    steps: int = 50,
    batch_size: int = 8,
) -> Float[Tensor, "n channels height width"]:
    """One filling of each hole, by the implicit sampler without guidance.

    Args:
        scorer: an inpainting pipeline as a scorer.
        cond: of all holes, see `inpainting_condition`.
        seeds: of the noise, one a hole.
        steps: of the sampler.
        batch_size: holes that are filled in together.

    Returns:
        Images in [-1, 1].

    Raises:
        OptionError: the scorer is no inpainting pipeline, or the numbers of holes and seeds differ.
    """
    codec = scorer.codec
    if not isinstance(codec, PipelineCodec) or not codec.inpainting:
        raise OptionError("this pipeline fills nothing in: its denoiser does not take a mask")
    if len(cond["mask"]) != len(seeds):
        raise OptionError(f"each hole needs a seed, got {len(cond['mask'])} and {len(seeds)}")
    scorer.eval()
    codec.wake(scorer.device)
    model, filled = predicting_noise(scorer.denoiser, scorer.schedule), []
    for start in range(0, len(seeds), batch_size):
        own = slice(start, start + batch_size)
        told = {name: value[own].to(scorer.device) for name, value in cond.items()}
        noise = _noise(codec, seeds[own]).to(scorer.device)
        filled.append(codec.decode(sample(model, noise, scorer.schedule, count=steps, cond=told).sample).cpu())
    return torch.cat(filled)


def _noise(codec: PipelineCodec, seeds: Sequence[int]) -> Tensor:
    return torch.stack([torch.randn(codec.shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def _conditions(codec: PipelineCodec, captions: Sequence[str], device: torch.device) -> dict[str, Tensor]:
    told = [codec.condition(caption) for caption in captions]
    return {name: torch.stack([each[name] for each in told]).to(device) for name in told[0]}


def _flow(
    scorer: DiffusionScorer,
    other: DiffusionScorer,
    x: Tensor,
    cond: dict[str, Tensor],
    steps: int,
    guidance: float,
) -> Tensor:
    """Euler's method along the velocity."""
    codec, schedule = scorer.codec, scorer.schedule
    assert isinstance(codec, PipelineCodec)
    empty = _conditions(codec, [""] * len(x), scorer.device)
    places = torch.linspace(schedule.steps - 1, 0, min(steps, schedule.steps)).round().long()
    sigmas = [*schedule.sigmas[places].tolist(), 0.0]
    for place, (now, then) in zip(places.tolist(), pairwise(sigmas), strict=True):
        t = torch.full((len(x),), place, device=x.device)
        velocity = scorer.denoiser(x, t, cond)
        if guidance != 1:
            velocity = guided(velocity, other.denoiser(x, t, empty), guidance)
        x = x + (then - now) * velocity
    return x
