"""TPO: a policy that learns from whole rated lists of solutions, branches of one tree, instead of from one pair.

Known answer: each prompt has one right action a step, so the share of new prompts that are solved step by step without
a fault can be counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefkit.diagnostics import Interval
from prefkit.objectives import ListScores, PairScores, TokenScores, make_objective
from prefkit.recipes.recipe import Claim, Experiment, Figures, Recipe
from prefkit.report.plots import Plot, bars

FEATURES, STEPS, ACTIONS, DIM = 8, 5, 4, 16
PROMPTS, RESPONSES = 300, 5
BETA = 0.5
METHODS: Mapping[str, Mapping[str, Any]] = {
    "DPO": {"kind": "dpo"},
    "unweighted pairs": {"kind": "plr", "weighted": False},
    "list ranking": {"kind": "plr"},
    "TPO": {"kind": "tpo"},
    "TPO, to the best": {"kind": "tpo", "adaptive": "to_best"},
}


@dataclass(frozen=True)
class World:
    """Problems of several steps, each with one right action that is linear in the problem.

    Args:
        right: `[steps, actions, features]`; the right action has the highest product with the problem.
        actions: `[actions, dim]`, what a step's embedding owes to its action.
        places: `[steps, dim]`, what it owes to its place.
        reference: `[steps, actions, features]`, parameters of the reference policy.
    """

    right: Tensor
    actions: Tensor
    places: Tensor
    reference: Tensor

    @classmethod
    def sample(cls, generator: torch.Generator) -> World:
        """A world."""

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        shape = (STEPS, ACTIONS, FEATURES)
        return cls(normal(*shape), normal(ACTIONS, DIM), 0.3 * normal(STEPS, DIM), 0.05 * normal(*shape))

    def solutions(self, problems: Tensor) -> Tensor:
        """The right actions, `[n, steps]`."""
        return logits(self.right, problems).argmax(2)

    def trees(self, problems: Tensor, responses: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Solutions that keep some first steps of the right one and go on as chance has it, best first.

        Returns:
            Actions `[n, responses, steps]` and values `[n, responses]` in [-100, 100]; the right solution has 100.
        """
        right = self.solutions(problems)[:, None]
        shape = (len(problems), responses, STEPS)
        kept = torch.randint(STEPS, shape[:2], generator=generator)
        kept[:, 0] = STEPS
        lucky = torch.rand(shape, generator=generator) < 0.35
        guessed = torch.randint(ACTIONS, shape, generator=generator)
        paths = torch.where(lucky | (torch.arange(STEPS) < kept[:, :, None]), right, guessed)
        share = (paths == right).float().mean(2)
        noise = 10 * torch.randn(shape[:2], generator=generator)
        values = (200 * share - 100 + noise).round().clamp(-100, 95)
        values[:, 0] = 100.0
        values, order = values.sort(dim=1, descending=True, stable=True)
        return paths.gather(1, order[:, :, None].expand(shape)), values


def logits(parameters: Tensor, problems: Tensor) -> Tensor:
    """`[n, steps, actions]`."""
    return torch.einsum("saf,nf->nsa", parameters, problems)


def step_logps(parameters: Tensor, problems: Tensor, paths: Tensor) -> Tensor:
    """Log-probability of each action, `[n, responses, steps]`."""
    logps = logits(parameters, problems).log_softmax(2)
    return logps[:, None].expand(-1, paths.shape[1], -1, -1).gather(3, paths[..., None]).squeeze(3)


def list_scores(policy: Tensor, reference: Tensor, states: Tensor, values: Tensor) -> ListScores:
    """Scores of lists in which each step is one token."""
    count = policy.shape[:2]
    owner = torch.arange(count.numel()).repeat_interleave(STEPS)
    tokens = TokenScores(
        policy.flatten(),
        owner,
        ref_logps=reference.flatten(),
        states=states.flatten(0, 2),
        steps=torch.arange(STEPS).repeat(count.numel()),
    )
    return ListScores(
        policy.sum(2),
        torch.arange(count[1]).expand(count),
        torch.ones(count, dtype=torch.bool),
        ref_logps=reference.sum(2),
        ratings=values,
        tokens=tokens,
    )


def fit(config: Mapping[str, Any], world: World, problems: Tensor, paths: Tensor, values: Tensor, seed: int) -> Tensor:
    """Parameters of a policy trained on lists, or, for DPO, on the best and the worst of each list."""
    generator = torch.Generator().manual_seed(seed)
    objective = make_objective({**config, "beta": BETA})
    reference = step_logps(world.reference, problems, paths)
    states = world.actions[paths] + world.places
    parameters = world.reference.clone().requires_grad_()
    optimiser = torch.optim.Adam([parameters], 0.02)
    for _ in range(40):
        for rows in torch.split(torch.randperm(len(problems), generator=generator), 16):
            policy = step_logps(parameters, problems[rows], paths[rows])
            if objective.form == "pairs":
                sums = policy.sum(2), reference[rows].sum(2)
                loss = objective(PairScores(sums[0][:, 0], sums[0][:, -1], sums[1][:, 0], sums[1][:, -1]))
            else:
                loss = objective(list_scores(policy, reference[rows], states[rows], values[rows]))
            optimiser.zero_grad()
            loss.mean().backward()  # type: ignore[no-untyped-call]  # torch's annotation is incomplete
            optimiser.step()
    return parameters.detach()


def run(seed: int) -> Figures:
    """Share of new problems solved without a fault, by method, and by list size for the paper's loss."""
    generator = torch.Generator().manual_seed(seed)
    world = World.sample(generator)
    problems = torch.randn(PROMPTS, FEATURES, generator=generator)
    new = torch.randn(2000, FEATURES, generator=generator)
    figures: dict[str, float] = {}

    def solved(config: Mapping[str, Any], lists: tuple[Tensor, Tensor]) -> float:
        found = logits(fit(config, world, problems, *lists, seed), new).argmax(2)
        return float((found == world.solutions(new)).all(1).float().mean())

    for responses in (3, RESPONSES, 10):
        lists = world.trees(problems, responses, generator)
        figures[f"TPO of {responses}"] = solved({"kind": "tpo"}, lists)
        if responses == RESPONSES:
            figures |= {name: solved(config, lists) for name, config in METHODS.items() if name != "TPO"}
            figures["TPO"] = figures[f"TPO of {responses}"]
    return figures


def plot(figures: Mapping[str, Interval]) -> Plot:
    """Share of problems solved, by method."""
    return bars(
        {name: figures[name] for name in METHODS},
        title=f"New problems solved, trained on lists of {RESPONSES}",
        x="share",
    )


CLAIMS = [
    Claim(
        "solves at least 0.08 more than DPO on best and worst in the mean",
        "TPO",
        "DPO",
        lambda ours, other: ours.mean() >= other.mean() + 0.08,
    ),
    Claim("solves more than DPO on every seed", "TPO", "DPO", lambda ours, other: bool((ours > other).all())),
    Claim(
        "solves at least 0.04 more than unweighted pairs in the mean",
        "TPO",
        "unweighted pairs",
        lambda ours, other: ours.mean() >= other.mean() + 0.04,
    ),
    Claim("lists of 5 are better than lists of 3", "TPO of 5", "TPO of 3", lambda ours, few: ours.mean() > few.mean()),
    Claim(
        "lists of 10 are better than lists of 5", "TPO of 10", "TPO of 5", lambda ours, few: ours.mean() > few.mean()
    ),
]

RECIPE = Recipe(
    slug="tpo",
    title="Ranking of whole trees of reasoning paths",
    year=2024,
    paper="arXiv 2410.12854",
    parts={"objective": {"kind": "tpo"}},
    experiment=Experiment(run, CLAIMS, plot, seeds=5, quick_seeds=1),
)
