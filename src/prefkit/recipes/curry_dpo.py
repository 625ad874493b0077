"""Curry-DPO: several pairs of each rated list, learned in stages from easy to hard, each against the model before it.

Known answer: in a bandit with a given reward, the share of prompts on which the policy beats the first model can be
computed over all candidates instead of sampled.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prefkit.comparisons import Candidate, curriculum_pairs, curriculum_stages
from prefkit.diagnostics import Interval
from prefkit.objectives import PairScores, make_objective
from prefkit.recipes.recipe import Claim, Experiment, Figures, Recipe
from prefkit.report.plots import Plot, bars

FEATURES, CANDIDATES, RATED, STAGES = 8, 24, 4, 3
EPOCHS = 3

Stage = Sequence[tuple[int, Candidate]]
"""Pairs, each with the place of its prompt."""


@dataclass(frozen=True)
class World:
    """Prompts with candidate responses, their true rewards, and a first model.

    Args:
        features: `[prompts, candidates, features]`, of the prompts to learn from.
        new: the same of other prompts.
        direction: `[features]`, linear part of the reward.
        inner: `[features, 16]`, inner weights of its other part.
        outer: `[16]`, outer weights of that part.
        sft: the first model.
    """

    features: Tensor
    new: Tensor
    direction: Tensor
    inner: Tensor
    outer: Tensor
    sft: nn.Module

    @classmethod
    def sample(cls, generator: torch.Generator) -> World:
        """A world; the first model takes its weights from torch's own generator."""
        features, new = (torch.randn(n, CANDIDATES, FEATURES, generator=generator) for n in (150, 1000))
        direction = torch.randn(FEATURES, generator=generator)
        inner = torch.randn(FEATURES, 16, generator=generator) / FEATURES**0.5
        outer = torch.randn(16, generator=generator) / 4
        sft = nn.Sequential(nn.Linear(FEATURES, 32), nn.Tanh(), nn.Linear(32, 1))
        return cls(features, new, direction / direction.norm(), inner, outer, sft)

    def reward(self, features: Tensor) -> Tensor:
        """True reward of each candidate."""
        return 2 * features @ self.direction + 1.5 * torch.tanh(features @ self.inner) @ self.outer

    @torch.no_grad()
    def win_rate(self, policy: nn.Module) -> float:
        """Probability that the policy's response to a new prompt is better than the first model's, if they differ."""
        ours, theirs = (logps(model, self.new).exp() for model in (policy, self.sft))
        both = ours[:, :, None] * theirs[:, None, :]
        reward = self.reward(self.new)
        gap = reward[:, :, None] - reward[:, None, :]
        return float((both * (gap > 0)).sum() / (both * (gap != 0)).sum())


def logps(model: nn.Module, features: Tensor) -> Tensor:
    """Log-probability of each candidate, `[prompts, candidates]`."""
    scores: Tensor = model(features).squeeze(2)
    return scores.log_softmax(1)


def fit(
    world: World,
    places: Tensor,
    stages: Sequence[Stage],
    generator: torch.Generator,
    *,
    beta: float,
    epochs: int = EPOCHS,
    update: bool = True,
) -> nn.Module:
    """The policy after DPO on the stages, one after the other, each with an optimiser of its own.

    Args:
        world: where it learns.
        places: `[prompts, rated]`, which candidates were rated.
        stages: the pairs.
        generator: shuffles the pairs of a stage.
        beta: temperature of DPO.
        epochs: passes over each stage.
        update: the reference is the model at the end of the stage before; False keeps the first model.
    """
    objective = make_objective({"kind": "dpo", "beta": beta})
    policy, reference = copy.deepcopy(world.sft), world.sft
    for stage in stages:
        if update:
            reference = copy.deepcopy(policy)
        prompts = torch.tensor([prompt for prompt, _ in stage])
        sides = torch.tensor([[pair.chosen, pair.rejected] for _, pair in stage])
        pairs = places[prompts].gather(1, sides)
        with torch.no_grad():
            ref = logps(reference, world.features[prompts]).gather(1, pairs)
        optimiser = torch.optim.Adam(policy.parameters(), 2e-3)
        for _ in range(epochs):
            for rows in torch.split(torch.randperm(len(stage), generator=generator), 16):
                found = logps(policy, world.features[prompts[rows]]).gather(1, pairs[rows])
                loss = objective(PairScores(found[:, 0], found[:, 1], ref[rows, 0], ref[rows, 1])).mean()
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch's annotation is incomplete
                optimiser.step()
    return policy


def run(seed: int) -> Figures:
    """Win rate against the first model of each way to use the rated lists, at two temperatures."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        world = World.sample(generator)
    with torch.no_grad():
        places = torch.multinomial(logps(world.sft, world.features).exp(), RATED, generator=generator)
    rewards = world.reward(world.features).gather(1, places)
    ratings = rewards + torch.randn(rewards.shape, generator=generator)
    lists = [curriculum_pairs(row) for row in ratings.tolist()]
    stages = curriculum_stages(lists, STAGES)
    pooled = [entry for stage in stages for entry in stage]
    mixed = [pooled[i] for i in torch.randperm(len(pooled), generator=generator).tolist()]
    third = len(pooled) // STAGES
    plans: Mapping[str, tuple[Sequence[Stage], Mapping[str, Any]]] = {
        "single pair": (stages[:1], {}),
        "single pair, three times as long": (stages[:1], {"epochs": STAGES * EPOCHS}),
        "hard pair, three times as long": (stages[-1:], {"epochs": STAGES * EPOCHS}),
        "pooled": ([pooled], {}),
        "curriculum, first reference": (stages, {"update": False}),
        "curriculum": (stages, {}),
        "reversed": (stages[::-1], {}),
        "random order": ([mixed[:third], mixed[third : 2 * third], mixed[2 * third :]], {}),
    }
    return {
        f"{name} {beta}": world.win_rate(
            fit(world, places, plan, torch.Generator().manual_seed(seed), beta=beta, **options)
        )
        for beta in (0.1, 0.5)
        for name, (plan, options) in plans.items()
    }


def plot(figures: Mapping[str, Interval]) -> Plot:
    """Win rate against the first model, by method."""
    return bars(
        {name.removesuffix(" 0.1"): figure for name, figure in figures.items() if name.endswith(" 0.1")},
        title="Win rate against the first model, beta 0.1",
        x="win rate",
    )


CLAIMS = [
    Claim(
        "at least 0.1 above one pair in one stage, on every seed",
        "curriculum 0.1",
        "single pair 0.1",
        lambda ours, other: bool((ours >= other + 0.1).all()),
    ),
    Claim(
        "at least 0.03 above the hard pair alone, trained three times as long",
        "curriculum 0.1",
        "hard pair, three times as long 0.1",
        lambda ours, other: ours.mean() >= other.mean() + 0.03,
    ),
    Claim(
        "beta 0.5: an updated reference is at least as good as the first one",
        "curriculum 0.5",
        "curriculum, first reference 0.5",
        lambda ours, other: ours.mean() >= other.mean(),
    ),
    Claim(
        "at most 0.01 below the reversed order",
        "curriculum 0.1",
        "reversed 0.1",
        lambda ours, other: ours.mean() >= other.mean() - 0.01,
    ),
]

RECIPE = Recipe(
    slug="curry-dpo",
    title="DPO on ranked responses, from easy pairs to hard ones",
    year=2024,
    paper="arXiv 2403.07230",
    parts={
        "objective": {"kind": "dpo", "beta": 0.1},
        "curriculum": {"stages": 3, "criterion": "rating", "reference": "previous"},
    },
    experiment=Experiment(run, CLAIMS, plot, seeds=6, quick_seeds=2),
)
