"""Runs on images without pairs: experts' demonstrations (Diffusion-DRO), and truncated fine-tuning (Self-NPO)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from prefkit.comparisons import Comparison, Winner
from prefkit.diffusion import (
    DiffusionScorer,
    RankedDemonstrations,
    TruncatedFineTuning,
    caption_of,
    select_experts,
)
from prefkit.errors import OptionError, PrefkitError, RecordError
from prefkit.options import Options
from prefkit.training import Run, TrainingOptions


class DemonstrationOptions(Options):
    """Learning from experts' images; see `prefkit.diffusion.RankedDemonstrations`."""

    kind: Literal["demonstrations"]
    experts: int = Field(500, ge=1, description="images that are kept: with the best scores of `feedback`, or winners")
    margin: float | None = Field(0.001, ge=0, description="lead from which on a pair is left alone; None: no threshold")
    refresh: int | None = Field(1, ge=1, description="updates between two refreshes of the policy; None: never")
    steps: int = Field(20, ge=1, description="steps of the sampler of negatives")
    buffer: int | None = Field(None, ge=1, description="trajectories that are kept; a batch by default")
    decay: float = Field(0.9999, ge=0, le=1, description="of the moving average, which is what is saved")
    empty_prompts: float = Field(0.2, ge=0, le=1, description="share of captions that are left out")


class TruncatedOptions(Options):
    """Truncated fine-tuning, which needs captions alone; see `prefkit.diffusion.TruncatedFineTuning`."""

    kind: Literal["truncated"]
    count: int = Field(25, ge=2, description="levels of the teacher's grid")
    steps: int = Field(5, ge=1, description="denoising steps of the teacher at most")
    guidance: float = Field(
        -5.0, description="w of the teacher: 0 conditional, -1 unconditional, below that away from it"
    )
    start: Literal["noise", "data"] = Field("noise", description="noise, or noised images of the data")
    teacher: Literal["ema", "frozen"] = Field("ema", description="an average of the student, or the model as it was")
    decay: float = Field(0.999, ge=0, le=1, description="of the average")
    loss_type: Literal["huber", "l2"] = Field("huber", description="distance of the clean estimates")
    huber_c: float = Field(0.001, gt=0, description="width of `huber`")


class Item:
    """An image with its caption, encoded: a clean sample, the spread of its posterior, and a condition."""

    def __init__(self, scorer: DiffusionScorer, comparison: Comparison, place: int) -> None:
        encoded = scorer.codec.encode(comparison)
        x0, _, self.cond = scorer.codec.collate([encoded])
        self.x0 = x0[place]


def run_loop(
    scorer: DiffusionScorer,
    data: Sequence[Comparison],
    method: DemonstrationOptions | TruncatedOptions,
    options: TrainingOptions,
    *,
    output: Path,
    config: dict[str, Any],
    skipped: list[RecordError] | None = None,
) -> Run:
    """Train a pipeline without pairs.

    Args:
        scorer: the pipeline; changed in place.
        data: comparisons, whose images or captions are used.
        method: the loop and its options.
        options: `max_steps`, `batch_size`, `learning_rate`, `weight_decay`, `max_grad_norm`, `seed` and `log_every`.
        output: the run folder.
        config: all options of the run.
        skipped: where rows that cannot be used are set aside; without it, the first is an error.

    Raises:
        OptionError: `training.max_steps` is missing.
        PrefkitError: a row cannot be used, or none can be.
    """
    if options.max_steps is None:
        raise OptionError(f"method: {method.kind} draws its batches without end: set training.max_steps")
    run = Run(output)
    run.begin(config, options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    items = list(_items(scorer, data, method, skipped))
    if not items:
        raise PrefkitError("no image can be used")
    scorer.codec.rest()
    scorer.train()
    weights = [weight for weight in scorer.denoiser.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=options.learning_rate, weight_decay=options.weight_decay)
    step, finish = _prepared(scorer, items, method, options.batch_size, generator)
    with (output / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
        for number in range(1, options.max_steps + 1):
            losses, after, figures = step()
            loss = losses.mean()
            if not bool(torch.isfinite(loss)):
                raise PrefkitError(f"the loss is not finite at step {number}; lower training.learning_rate")
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's annotation is incomplete
            if options.max_grad_norm:
                nn.utils.clip_grad_norm_(weights, options.max_grad_norm)
            optimiser.step()
            after()
            if number % options.log_every == 0 or number == options.max_steps:
                metrics.write(json.dumps({"step": number, "loss": float(loss.detach()), **figures()}) + "\n")
    finish()
    scorer.save(run.model)
    listed = [
        {"source": bad.source, "line": bad.line, "field": bad.field, "problem": bad.problem} for bad in skipped or ()
    ]
    (output / "skipped.jsonl").write_text("".join(json.dumps(each) + "\n" for each in listed), encoding="utf-8")
    return run


Step = Callable[[], tuple[Tensor, Callable[[], None], Callable[[], dict[str, float]]]]


def _prepared(
    scorer: DiffusionScorer,
    items: Sequence[Item],
    method: DemonstrationOptions | TruncatedOptions,
    batch: int,
    generator: torch.Generator,
) -> tuple[Step, Callable[[], None]]:
    """One update, and what is to be done at the end."""
    device = scorer.device

    def some(count: int) -> tuple[Tensor, dict[str, Tensor]]:
        chosen = [items[place] for place in torch.randint(len(items), (count,), generator=generator).tolist()]
        cond = {name: torch.cat([item.cond[name] for item in chosen]).to(device) for name in chosen[0].cond}
        return torch.stack([item.x0 for item in chosen]).to(device), cond

    def empty(count: int) -> dict[str, Tensor]:
        return {name: value.expand(count, *value.shape).to(device) for name, value in scorer.codec.empty().items()}

    shape = (batch, *items[0].x0.shape)
    if method.kind == "truncated":
        how = method.model_dump(exclude={"kind"})
        truncated = TruncatedFineTuning(scorer.denoiser, scorer.schedule, **how)

        def fine_tune() -> tuple[Tensor, Callable[[], None], Callable[[], dict[str, float]]]:
            x0, cond = some(batch)
            losses = truncated.losses(shape, generator, cond=cond, uncond=empty(batch), x0=x0)
            return losses, truncated.after_update, dict

        return fine_tune, lambda: None

    buffer = method.buffer or batch
    how = method.model_dump(include={"margin", "refresh", "steps", "decay"})
    ranked = RankedDemonstrations(scorer.denoiser, scorer.schedule, buffer=buffer, **how)
    kept: list[tuple[Tensor, dict[str, Tensor]]] = []

    def explore() -> None:
        x0, cond = some(batch)
        dropped = torch.rand(batch, generator=generator) < method.empty_prompts
        for name, nothing in empty(batch).items():
            mask = dropped.to(device).reshape(-1, *[1] * (nothing.ndim - 1))
            cond[name] = torch.where(mask, nothing.to(cond[name].dtype), cond[name])
        ranked.explore(shape, generator, cond)
        # What belongs to a trajectory stays with it.
        parts = [(x0[place], {name: value[place] for name, value in cond.items()}) for place in range(batch)]
        kept[:] = [*kept, *parts][-buffer:]

    def experts(place: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        chosen = [kept[number] for number in place.tolist()]
        names = chosen[0][1]
        return torch.stack([x0 for x0, _ in chosen]), {
            name: torch.stack([cond[name] for _, cond in chosen]) for name in names
        }

    def rank() -> tuple[Tensor, Callable[[], None], Callable[[], dict[str, float]]]:
        explore()
        return ranked.losses(experts, batch, generator), ranked.after_update, lambda: {"active": ranked.active}

    def average() -> None:
        with torch.no_grad():
            for weight, averaged in zip(scorer.denoiser.parameters(), ranked.average.parameters(), strict=True):
                weight.copy_(averaged)

    return rank, average


def _items(
    scorer: DiffusionScorer,
    data: Sequence[Comparison],
    method: DemonstrationOptions | TruncatedOptions,
    skipped: list[RecordError] | None,
) -> Iterator[Item]:
    scorer.codec.wake(scorer.device)
    for comparison, place in _chosen(data, method):
        try:
            yield Item(scorer, comparison, place)
        except RecordError as error:
            placed = RecordError(error.problem, field=error.field, source=comparison.source, line=comparison.line)
            if skipped is None:
                raise PrefkitError(f"{placed}; --skip-bad (skip_bad: true) sets such rows aside and goes on") from error
            skipped.append(placed)


def _chosen(
    data: Sequence[Comparison], method: DemonstrationOptions | TruncatedOptions
) -> Iterator[tuple[Comparison, int]]:
    """Which image of which comparison is used."""
    if method.kind == "truncated":
        seen: set[str] = set()
        for comparison in data:
            caption = caption_of(comparison.prompt_of(0))
            if method.start == "data" or caption not in seen:
                seen.add(caption)
                yield comparison, 0
        return
    rated = [
        (c, place, c.extra["rewards"][place]) for c in data if "rewards" in c.extra for place in range(len(c.responses))
    ]
    if rated:
        for number in select_experts([score for _, _, score in rated], method.experts)[0]:
            yield rated[number][:2]
        return
    winners = [(c, c.judgement.index) for c in data if isinstance(c.judgement, Winner)]
    yield from winners[: method.experts]
