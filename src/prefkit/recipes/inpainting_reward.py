"""A reward model of filled-in images: from ratings to a model of how good a filling is, and how certain that is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from scipy.stats import spearmanr
from torch import Tensor, nn

from prefkit.diagnostics import bootstrap_interval, run_report
from prefkit.diffusion import (
    ImageEmbedder,
    InpaintingJudge,
    InpaintingReward,
    RatedFilling,
    RewardUncertainty,
    load_embedder,
    read_rated_fillings,
)
from prefkit.diffusion.trust import reward_regression_loss
from prefkit.errors import OptionError, PrefkitError, RecordError
from prefkit.objectives import reward_model_loss
from prefkit.options import Options
from prefkit.recipes.run_images import refused
from prefkit.report import Table
from prefkit.training import Run, processes
from prefkit.training.storage import write_text


class InpaintingRewardOptions(Options):
    """The reward model; see `prefkit.diffusion.InpaintingReward`."""

    kind: Literal["inpainting_reward"]
    embedder: str = Field(description="folder or hub name of a CLIP model; it stays as it is")
    hidden: int = Field(512, ge=1, description="size of the layer before the features")
    features: int = Field(256, ge=1, description="size of the features")
    heads: int = Field(16, ge=1, description="attention heads")
    loss: Literal["regression", "ranking"] = Field(
        "regression", description="on normalised scores, or the best above the worst filling of each hole"
    )
    lam: float = Field(0.01, gt=0, description="lambda of the uncertainty")


class RatingsOptions(Options):
    """Which ratings; see `prefkit.diffusion.read_rated_fillings`."""

    path: str = Field(description="file with `inpaint`, `mask_rgb`, `score` and, better, `img_id`")
    limit: int | None = Field(None, ge=1, description="read at most so many rows")
    held_out: float = Field(0.1, gt=0, lt=1, description="share of the holes on which the model is measured")


class FittingOptions(Options):
    """How the reward model is trained, by AdamW."""

    epochs: int = Field(20, ge=1, description="passes over the data")
    batch_size: int = Field(64, ge=1, description="fillings a step; holes, with the loss `ranking`")
    learning_rate: float = Field(1e-4, gt=0, description="constant")
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay")
    seed: int = Field(0, ge=0, description="of weights, order and held-out holes")


class InpaintingRewardConfig(Options):
    """Everything that decides a run."""

    model: InpaintingRewardOptions = Field(description="the reward model")
    data: RatingsOptions = Field(description="the ratings")
    skip_bad: bool = Field(False, description="set unusable rows aside and go on; False stops at the first")
    training: FittingOptions = Field(default_factory=FittingOptions, description="how it is trained")
    output: str = Field(description="the run folder")


@dataclass(frozen=True)
class InpaintingRewardResult:
    """What a run came to.

    Args:
        run: its folder; `run.model` is what `prefkit.diffusion.load_inpainting_judge` reads.
        rows: fillings that were trained on.
        skipped: rows that were set aside.
        table: figures on holes that were held out.
        report: the page.
    """

    run: Run
    rows: int
    skipped: Sequence[RecordError]
    table: Table
    report: Path


class _Data(NamedTuple):
    """Embedded fillings, `[n, ...]`; `group` numbers their holes."""

    filled: Tensor
    hole: Tensor
    score: Tensor
    group: Tensor

    def part(self, rows: Tensor) -> _Data:
        """Some of the rows."""
        return _Data(*(column[rows] for column in self))


def run_inpainting_reward(config: InpaintingRewardConfig) -> InpaintingRewardResult:
    """Train a reward model of fillings, measure it on holes that it has not seen, save and report.

    Raises:
        OptionError: an option does not apply.
        PrefkitError: a row cannot be used and `skip_bad` is off; the scores are all equal; or too few holes are rated.
    """
    run, options = Run(Path(config.output)), config.training
    embedder = load_embedder(config.model.embedder)
    device = processes.device()
    data, skipped = _embedded(config, embedder.to(device))
    training, held_out = _split(data, config.data.held_out, options.seed)
    mean, std = training.score.mean(), training.score.std()
    if not bool(std > 0):
        raise PrefkitError(f"{config.data.path}: all scores are equal, so there is nothing to learn")
    if config.model.loss == "ranking" and not _extremes(training):
        raise OptionError("model.loss: ranking needs holes with two fillings of different scores; set img_id")
    run.begin(config.model_dump(mode="json"), options.seed)
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        reward = InpaintingReward(embedder.size, config.model.hidden, config.model.features, config.model.heads).to(
            device
        )
        normal = training._replace(score=(training.score - mean) / std)
        lines = list(_train(reward, normal, config))
    write_text(run.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    reward.eval()
    with torch.no_grad():
        found = reward(training.filled, training.hole)
        if config.model.loss == "ranking":
            # A ranking leaves zero and scale open.
            reward.shift, reward.scale = float(found.rewards.mean()), float(found.rewards.std())
    judge = InpaintingJudge(embedder, reward, RewardUncertainty(found.features, config.model.lam))
    table = _measured(judge, held_out._replace(score=(held_out.score - mean) / std), config.model.loss)
    run.model.mkdir(parents=True, exist_ok=True)
    judge.save(run.model)
    aside = [bad.to_dict() for bad in skipped]
    write_text(run.folder / "skipped.jsonl", "".join(json.dumps(line) + "\n" for line in aside))
    report = run_report(
        f"Reward of fillings on {config.data.path}",
        metrics=lines,
        settings=run.config,
        skipped=aside,
        environment=run.environment,
    )
    report.section("Held out", "On holes that were not trained on, with 95% intervals over holes.", table)
    path = Path(report.write(run.folder / "report.html"))
    return InpaintingRewardResult(run, len(training.score), skipped, table, path)


def _embedded(config: InpaintingRewardConfig, embedder: ImageEmbedder) -> tuple[_Data, list[RecordError]]:
    """All fillings as their embeddings; images are forgotten batch by batch."""
    columns: list[_Data] = []
    skipped: list[RecordError] = []
    groups: dict[str, int] = {}
    waiting: list[RatedFilling] = []

    def take() -> None:
        filled, hole = (embedder(torch.stack([getattr(row, name) for row in waiting])) for name in ("filled", "hole"))
        score = torch.tensor([row.score for row in waiting], device=filled.device)
        group = torch.tensor([groups.setdefault(row.group, len(groups)) for row in waiting])
        columns.append(_Data(filled, hole, score, group))
        waiting.clear()

    for row in read_rated_fillings(Path(config.data.path), embedder.side, config.data.limit):
        if isinstance(row, RecordError):
            if not config.skip_bad:
                raise refused(row)
            skipped.append(row)
            continue
        waiting.append(row)
        if len(waiting) == _TOGETHER:
            take()
    if waiting:
        take()
    if not columns:
        raise PrefkitError(f"{config.data.path}: no filling can be used" + (f"; {skipped[0]}" if skipped else ""))
    return _Data(*(torch.cat([getattr(part, name) for part in columns]) for name in _Data._fields)), skipped


_TOGETHER = 32
"""Images that are embedded at once."""


def _split(data: _Data, share: float, seed: int) -> tuple[_Data, _Data]:
    """Training and held-out fillings; those of one hole stay together."""
    count = int(data.group.max()) + 1
    out = round(share * count) or 1
    if count - out < 2:
        raise PrefkitError(f"{count} holes are too few to hold out {share:.0%} of them: rate more, or check img_id")
    held = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:out]
    rows = torch.isin(data.group, held)
    return data.part(~rows), data.part(rows)


def _extremes(data: _Data) -> list[tuple[int, int]]:
    """The best and the worst filling of each hole, where their scores differ."""
    pairs = []
    for group in sorted(set(data.group.tolist())):
        rows = (data.group == group).nonzero()[:, 0]
        scores = data.score[rows.to(data.score.device)]
        best, worst = int(scores.argmax()), int(scores.argmin())
        if scores[best] > scores[worst]:
            pairs.append((int(rows[best]), int(rows[worst])))
    return pairs


def _train(reward: InpaintingReward, data: _Data, config: InpaintingRewardConfig) -> Iterator[dict[str, float]]:
    """Train, and give the mean loss of each pass."""
    options = config.training
    generator = torch.Generator().manual_seed(options.seed)
    optimizer = torch.optim.AdamW(reward.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    pairs = torch.tensor(_extremes(data)) if config.model.loss == "ranking" else None
    count, step = len(data.score if pairs is None else pairs), 0
    reward.train()
    for epoch in range(1, options.epochs + 1):
        total = 0.0
        for rows in torch.split(torch.randperm(count, generator=generator), options.batch_size):
            if pairs is None:
                losses = reward_regression_loss(reward(data.filled[rows], data.hole[rows]).rewards, data.score[rows])
            else:
                better, worse = (reward(data.filled[side], data.hole[side]) for side in pairs[rows].unbind(1))
                losses = reward_model_loss(better.rewards, worse.rewards)
            if not bool(torch.isfinite(losses).all()):
                raise PrefkitError(f"the loss is not finite in pass {epoch}; lower training.learning_rate")
            optimizer.zero_grad()
            losses.mean().backward()  # type: ignore[no-untyped-call]  # torch's annotation is incomplete
            nn.utils.clip_grad_norm_(reward.parameters(), 1.0)
            optimizer.step()
            total, step = total + float(losses.detach().sum()), step + 1
        yield {"step": step, "epoch": epoch, "loss": total / count}


def _measured(judge: InpaintingJudge, data: _Data, loss: str) -> Table:
    """Figures on held-out holes: how often two fillings of one are ranked rightly, and what the uncertainty tells."""
    with torch.no_grad():
        found = judge.reward(data.filled, data.hole)
    rewards, scores, groups = (column.cpu().double().numpy() for column in (found.rewards, data.score, data.group))
    right, owner = [], []
    for group in np.unique(groups):
        own = np.flatnonzero(groups == group)
        for place, first in enumerate(own):
            for second in own[place + 1 :]:
                if scores[first] != scores[second]:
                    agreed = (rewards[first] - rewards[second]) * (scores[first] - scores[second])
                    right.append((np.sign(agreed) + 1) / 2)
                    owner.append(group)
    rows: list[list[object]] = []
    if right:
        rows.append(["two fillings of a hole ranked rightly", bootstrap_interval(right, clusters=owner)])
    if loss == "regression":
        errors = np.abs(rewards - scores)
        rows += [
            ["mean absolute error, in deviations of the scores", bootstrap_interval(errors, clusters=groups)],
            ["the same of the mean score", bootstrap_interval(np.abs(scores), clusters=groups)],
        ]
        for kind in ("paper", "released"):
            u = judge.trusted.norm(found.features, kind).cpu().double().numpy()
            if len(errors) > 2 and np.ptp(u) > 0 and np.ptp(errors) > 0:
                rows.append(
                    [f"rank correlation of error and uncertainty, {kind}", float(spearmanr(errors, u).statistic)]
                )
    rows += [["fillings", len(scores)], ["holes", len(np.unique(groups))]]
    return Table(["figure", "held out"], rows, "Reward of fillings")
