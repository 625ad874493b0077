"""Runs on images without pairs: experts' demonstrations (Diffusion-DRO), and truncated fine-tuning (Self-NPO).

A loop draws its own batches, round after round, from one generator. What it has become is written to checkpoints, from
which a run that was stopped goes on to the same numbers.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
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
from prefkit.objectives import moving
from prefkit.options import Options
from prefkit.training import FitResult, Run, TrainingOptions, checkpoints, go_back, interruptible, open_run, write_model
from prefkit.training.storage import explaining


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


class Loop(Protocol):
    """What a run without pairs repeats."""

    def round(self) -> Iterator[Tensor]:
        """Losses of a batch, once or several times; the weights are updated after each."""
        ...

    def after_update(self) -> None:
        """The weights have changed."""
        ...

    def figures(self) -> dict[str, float]:
        """What is reported of the last round beside its loss."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint has to hold beside the weights and the optimizer."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state` was taken."""
        ...

    def finish(self) -> None:
        """Training has ended: make the model what is to be saved."""
        ...


class Item:
    """An image with its caption, encoded: a clean sample, and a condition."""

    def __init__(self, scorer: DiffusionScorer, comparison: Comparison, place: int) -> None:
        encoded = scorer.codec.encode(comparison)
        x0, _, self.cond = scorer.codec.collate([encoded])
        self.x0, self.key = x0[place], f"{encoded['key']} {place}"


_USED = {
    *("max_steps", "batch_size", "learning_rate", "weight_decay", "max_grad_norm", "seed", "log_every"),
    *("save_every", "keep_checkpoints", "progress"),
}
"""Training options that a loop takes."""

_WEIGHTS, _STATE, _OPTIMIZER = "model.safetensors", "state.safetensors", "optimizer.pt"


def run_loop(
    scorer: DiffusionScorer,
    data: Sequence[Comparison],
    method: DemonstrationOptions | TruncatedOptions,
    options: TrainingOptions,
    *,
    output: Path,
    config: dict[str, Any],
    skipped: list[RecordError] | None = None,
    resume: bool = False,
) -> FitResult:
    """Train a pipeline without pairs.

    Args:
        scorer: the pipeline; changed in place.
        data: comparisons, whose images or captions are used.
        method: the loop and its options.
        options: see `repeat`.
        output: the run folder.
        config: all options of the run.
        skipped: where rows that cannot be used are set aside; without it, the first is an error.
        resume: go on from the newest good checkpoint in `output`, or start there if there is none.

    Raises:
        OptionError: `training.max_steps` is missing, or an option does not apply.
        PrefkitError: a row cannot be used, or none can be; the folder holds another run.
    """
    run = begin(options, method.kind, output=output, config=config, resume=resume)
    items = list(_items(scorer, data, method, skipped))
    if not items:
        raise PrefkitError("no image can be used")
    run.check_data({"training": content_key(item.key for item in items)})
    generator = torch.Generator().manual_seed(options.seed)
    batches = _Batches(scorer, items, options.batch_size, generator)
    loop: Loop = _Truncated(batches, method) if method.kind == "truncated" else _Demonstrations(batches, method)
    return repeat(
        scorer, loop, options, run=run, generator=generator, rows=len(items), skipped=skipped or [], resume=resume
    )


def content_key(keys: Iterable[str]) -> str:
    """A digest of the rows that are trained on, by the digest of each."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()


def begin(options: TrainingOptions, kind: str, *, output: Path, config: dict[str, Any], resume: bool) -> Run:
    """Open the folder of a run of a loop.

    Raises:
        OptionError: `training.max_steps` is missing, or an option does not apply.
        PrefkitError: the folder holds another run.
    """
    if options.max_steps is None:
        raise OptionError(f"method: {kind} draws its batches without end: set training.max_steps")
    if unused := sorted(options.model_fields_set - _USED):
        raise OptionError(f"training.{unused[0]} does not apply to method {kind}")
    run = Run(output)
    open_run(run, config, options, resume)
    return run


def repeat(
    scorer: DiffusionScorer,
    loop: Loop,
    options: TrainingOptions,
    *,
    run: Run,
    generator: torch.Generator,
    rows: int,
    skipped: Sequence[RecordError],
    resume: bool,
) -> FitResult:
    """Repeat the rounds of a loop to the end, and save the pipeline.

    Args:
        scorer: the pipeline; changed in place.
        loop: gives losses.
        options: `max_steps` (rounds), `batch_size`, `learning_rate`, `weight_decay`, `max_grad_norm`, `seed`,
            `log_every`, `save_every` (rounds; by default as many as take each row once) and `keep_checkpoints`.
        run: its folder, opened.
        generator: source of randomness of the loop, on the CPU.
        rows: rows that are trained on.
        skipped: rows that were set aside.
        resume: go on from the newest good checkpoint.

    Raises:
        PrefkitError: a loss is not finite.
    """
    assert options.max_steps is not None
    scorer.codec.rest()
    scorer.train()
    weights = [weight for weight in scorer.denoiser.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=options.learning_rate, weight_decay=options.weight_decay)
    kept = _Checkpoints(scorer, loop, optimizer, generator, run, options.keep_checkpoints)
    checkpoint = go_back(run, resume)
    done = 0 if checkpoint is None else kept.load(checkpoint)
    every = options.save_every if options.save_every is not None else max(1, rows // options.batch_size)
    begun = time.perf_counter()
    with interruptible(run, lambda: done):
        for number in range(done + 1, options.max_steps + 1):
            # Dropout draws from torch's own generator: now a round has the same draws if the run is resumed.
            torch.manual_seed(options.seed * 1_000_003 + number)
            found = []
            for losses in loop.round():
                found.append(losses.mean())
                if not bool(torch.isfinite(found[-1])):
                    raise PrefkitError(f"the loss is not finite at step {number}; lower training.learning_rate")
                optimizer.zero_grad()
                found[-1].backward()  # type: ignore[no-untyped-call]  # torch's annotation is incomplete
                if options.max_grad_norm:
                    nn.utils.clip_grad_norm_(weights, options.max_grad_norm)
                optimizer.step()
                loop.after_update()
            done = number
            if number % options.log_every == 0 or number == options.max_steps:
                line = {"step": number, "loss": float(torch.stack(found).detach().mean()), **loop.figures()}
                with (run.folder / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
                    metrics.write(json.dumps(line) + "\n")
            if every and (number % every == 0 or number == options.max_steps):
                kept.save(number)
    seconds = time.perf_counter() - begun
    loop.finish()
    write_model(run, scorer.save)
    lines = [bad.to_dict() for bad in skipped]
    (run.folder / "skipped.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return FitResult(run, options.max_steps, seconds, rows, len(skipped), run.metrics[-1])


class _Checkpoints:
    """Everything that a run of a loop has become, written and read."""

    def __init__(
        self,
        scorer: DiffusionScorer,
        loop: Loop,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        run: Run,
        count: int,
    ) -> None:
        self.scorer, self.loop, self.optimizer, self.generator = scorer, loop, optimizer, generator
        self.folder, self.count = run.checkpoints, count

    def save(self, step: int) -> None:
        """Write a checkpoint, and only when it is whole delete an older one."""
        place, denoiser = checkpoints.place(self.folder, step), self.scorer.denoiser
        with explaining(place, "the last good checkpoint is kept: free some space and resume the run"):
            checkpoints.discard(place)
            place.mkdir(parents=True)
            weights = denoiser.state_dict()
            save_file({name: weights[name].contiguous() for name in moving(denoiser)}, place / _WEIGHTS)
            state = {f"loop {name}": tensor.contiguous() for name, tensor in self.loop.state().items()}
            save_file({**state, "generator": self.generator.get_state()}, place / _STATE)
            torch.save(self.optimizer.state_dict(), place / _OPTIMIZER)
            checkpoints.finish(place)
        checkpoints.keep(self.folder, place, self.count)

    def load(self, place: Path) -> int:
        """Go on from a checkpoint; gives the number of its round."""
        weights, state = load_file(place / _WEIGHTS), load_file(place / _STATE)
        if set(weights) != set(moving(self.scorer.denoiser)):
            raise PrefkitError(f"{place} holds other weights than the model that is to be trained")
        self.scorer.denoiser.load_state_dict(weights, strict=False)
        self.generator.set_state(state.pop("generator"))
        self.loop.load_state({name.removeprefix("loop "): tensor for name, tensor in state.items()})
        self.optimizer.load_state_dict(torch.load(place / _OPTIMIZER, map_location="cpu", weights_only=True))
        return checkpoints.step_of(place)


class _Batches:
    """Batches of items, drawn with replacement."""

    def __init__(self, scorer: DiffusionScorer, items: Sequence[Item], size: int, generator: torch.Generator) -> None:
        self.scorer, self.items, self.size, self.generator = scorer, items, size, generator
        self.shape = (size, *items[0].x0.shape)

    def draw(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Clean samples and their conditions."""
        places = torch.randint(len(self.items), (self.size,), generator=self.generator).tolist()
        chosen, device = [self.items[place] for place in places], self.scorer.device
        cond = {name: torch.cat([item.cond[name] for item in chosen]).to(device) for name in chosen[0].cond}
        return torch.stack([item.x0 for item in chosen]).to(device), cond

    def empty(self) -> dict[str, Tensor]:
        """As many empty conditions."""
        device = self.scorer.device
        return {name: x.expand(self.size, *x.shape).to(device) for name, x in self.scorer.codec.empty().items()}


class _Truncated:
    """Truncated fine-tuning; see `prefkit.diffusion.TruncatedFineTuning`."""

    def __init__(self, batches: _Batches, method: TruncatedOptions) -> None:
        self.batches = batches
        how = method.model_dump(exclude={"kind"})
        self.tuning = TruncatedFineTuning(batches.scorer.denoiser, batches.scorer.schedule, **how)
        self.after_update = self.tuning.after_update
        self.state, self.load_state = self.tuning.state, self.tuning.load_state

    def round(self) -> Iterator[Tensor]:
        """See `Loop`."""
        x0, cond = self.batches.draw()
        how: dict[str, Any] = {"cond": cond, "uncond": self.batches.empty(), "x0": x0}
        yield self.tuning.losses(self.batches.shape, self.batches.generator, **how)

    def figures(self) -> dict[str, float]:
        """Nothing."""
        return {}

    def finish(self) -> None:
        """Nothing to do."""


class _Demonstrations:
    """Learning from demonstrations; see `prefkit.diffusion.RankedDemonstrations`."""

    def __init__(self, batches: _Batches, method: DemonstrationOptions) -> None:
        self.batches, self.empty_prompts = batches, method.empty_prompts
        self.size = method.buffer or batches.size
        how = method.model_dump(include={"margin", "refresh", "steps", "decay"})
        self.ranked = RankedDemonstrations(batches.scorer.denoiser, batches.scorer.schedule, buffer=self.size, **how)
        self.after_update = self.ranked.after_update
        # What belongs to a trajectory stays with it: an expert's sample and the condition, one row a trajectory.
        self.kept: dict[str, Tensor] = {}

    def round(self) -> Iterator[Tensor]:
        """See `Loop`."""
        self._explore()
        yield self.ranked.losses(self._experts, self.batches.size, self.batches.generator)

    def figures(self) -> dict[str, float]:
        """Share of the batch that the threshold let through."""
        return {"active": self.ranked.active}

    def state(self) -> dict[str, Tensor]:
        """See `Loop`."""
        return {**self.ranked.state(), **{f"kept {name}": tensor for name, tensor in self.kept.items()}}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Loop`."""
        self.ranked.load_state(state)
        device = self.batches.scorer.device
        names = [name for name in state if name.startswith("kept ")]
        self.kept = {name.removeprefix("kept "): state[name].to(device) for name in names}

    def finish(self) -> None:
        """The moving average is what is used in the end."""
        with torch.no_grad():
            trained, averaged = self.batches.scorer.denoiser.parameters(), self.ranked.average.parameters()
            for weight, average in zip(trained, averaged, strict=True):
                weight.copy_(average)

    def _explore(self) -> None:
        x0, cond = self.batches.draw()
        dropped = torch.rand(self.batches.size, generator=self.batches.generator) < self.empty_prompts
        for name, nothing in self.batches.empty().items():
            mask = dropped.to(nothing.device).reshape(-1, *[1] * (nothing.ndim - 1))
            cond[name] = torch.where(mask, nothing.to(cond[name].dtype), cond[name])
        self.ranked.explore(self.batches.shape, self.batches.generator, cond)
        for name, fresh in {"x0": x0, **{f"cond {name}": value for name, value in cond.items()}}.items():
            both = torch.cat([self.kept[name], fresh]) if name in self.kept else fresh
            self.kept[name] = both[-self.size :]

    def _experts(self, place: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        place = place.to(self.batches.scorer.device)
        cond = {name.removeprefix("cond "): x[place] for name, x in self.kept.items() if name.startswith("cond ")}
        return self.kept["x0"][place], cond


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
            placed = error.at(comparison)
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
