"""MADPO: the margin that a pair is to reach, set by what a reward model thinks of the pair.

Known answers: the margin at which the weighted loss is least has a closed form, and in a small world with known rewards
the mean true reward of a policy can be computed exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prefkit.diagnostics import Interval
from prefkit.objectives import Objective, PairScores, make_objective, population_target_margin, reward_model_loss
from prefkit.recipes.recipe import Claim, Experiment, Figures, Recipe
from prefkit.recipes.testbeds import minimise
from prefkit.report.plots import Plot, bars

MARGINS = (0.2, 0.5, 1.0, 2.0, 3.0)
ADAPTIVE = {"tau 7": {"c_max": 4.0, "tau": 7.0}, "tau 2": {"c_max": 3.0, "tau": 2.0}}
LABELS = 20_000

METHODS: Mapping[str, Mapping[str, Any]] = {
    "DPO": {"kind": "dpo", "beta": 2.0},
    "IPO": {"kind": "ipo", "beta": 2.0},
    "beta-DPO": {"kind": "beta_dpo", "beta": 2.0},
    "DPO at half the beta": {"kind": "dpo", "beta": 1.0},
    "DPO at a quarter of the beta": {"kind": "dpo", "beta": 0.5},
    "MADPO c=2": {"kind": "madpo", "beta": 2.0, "c_max": 2.0, "tau": 7.0},
    "MADPO c=4": {"kind": "madpo", "beta": 2.0, "c_max": 4.0, "tau": 7.0},
}
PAIRS, STEPS, RATE = 4000, 400, 0.05


def run(seed: int) -> Figures:
    """Distances from the target margins, and mean true rewards."""
    generator = torch.Generator().manual_seed(seed)
    figures = {"allowed distance": 0.15}
    for name, options in ADAPTIVE.items():
        ours, plain = target_distances(options, generator)
        figures[f"MADPO distance, {name}"] = ours
        figures[f"DPO distance, {name}"] = plain

    world = World.sample(generator)
    pairs = world.pairs(PAIRS, generator)
    margins = world.margins(pairs)
    noisy = margins + torch.randn(PAIRS, generator=generator, dtype=margins.dtype)
    figures["reference"] = world.reward(world.reference)
    figures["best possible"] = float(world.rewards.max(1).values.mean())
    for name, config in METHODS.items():
        figures[name] = world.reward(world.train(config, pairs, margins))
    figures["MADPO c=4, noisy rewards"] = world.reward(world.train(METHODS["MADPO c=4"], pairs, noisy))
    return figures


def target_distances(options: Mapping[str, Any], generator: torch.Generator) -> tuple[float, float]:
    """How far the margins that minimise the loss of sampled labels lie from the population's, at most; of DPO too."""
    found: dict[str, list[float]] = {"madpo": [], "dpo": []}
    for margin in MARGINS:
        first = (
            torch.rand(LABELS, generator=generator, dtype=torch.float64) < torch.sigmoid(torch.tensor(margin)).double()
        )
        share = first.double().mean()
        target = float(population_target_margin(torch.tensor([margin], dtype=torch.float64), **options))
        for kind, more in (("madpo", options), ("dpo", {})):
            objective = make_objective({"kind": kind, "beta": 1.0, **more})

            def loss(
                m: Tensor,
                objective: Objective[PairScores] = objective,
                share: Tensor = share,
                margin: float = margin,
            ) -> Tensor:
                # Two pairs stand for all labels: the order of positive margin, and its opposite.
                zero, sides = torch.zeros(2, dtype=m.dtype), torch.tensor([1.0, -1.0], dtype=m.dtype)
                counts = LABELS * torch.stack([share, 1 - share])
                return objective(PairScores(sides * m, zero, zero, zero, weights=counts, margins=sides * margin)).sum()

            found[kind].append(abs(float(minimise(loss, 1)) - target))
    return max(found["madpo"]), max(found["dpo"])


@dataclass(frozen=True)
class World:
    """Prompts with a few responses each, whose true reward is linear in features, and a reference policy.

    Args:
        features: of each response.
        rewards: true reward of each response, in log-odds.
        reference: log-probabilities of the responses under the reference.
    """

    features: Float[Tensor, "prompts k d"]
    rewards: Float[Tensor, "prompts k"]
    reference: Float[Tensor, "prompts k"]

    @classmethod
    def sample(cls, generator: torch.Generator, *, prompts: int = 20, k: int = 10, d: int = 6) -> Self:
        """A world with rewards of standard deviation about 2."""
        features = torch.randn(prompts, k, d, generator=generator, dtype=torch.float64)
        theta = 0.8 * torch.randn(d, generator=generator, dtype=torch.float64)
        reference = 0.5 * torch.randn(prompts, k, generator=generator, dtype=torch.float64)
        return cls(features, features @ theta, reference.log_softmax(1))

    def pairs(self, n: int, generator: torch.Generator) -> Int[Tensor, "n 3"]:
        """Prompt, chosen and rejected response: two samples of the reference, labelled by Bradley-Terry."""
        prompts = torch.randint(len(self.rewards), (n,), generator=generator)
        both = torch.multinomial(self.reference[prompts].exp(), 2, generator=generator)
        # The larger of two rewards with Gumbel noise is the choice of Bradley-Terry.
        uniform = torch.rand(n, 2, generator=generator, dtype=torch.float64)
        noisy = self.rewards[prompts[:, None], both] - torch.log(-torch.log(uniform))
        chosen = noisy.argmax(1, keepdim=True)
        return torch.cat([prompts[:, None], both.gather(1, chosen), both.gather(1, 1 - chosen)], dim=1)

    def margins(self, pairs: Int[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Reward margins of a linear reward model fitted to the pairs."""
        prompts, chosen, rejected = pairs.unbind(1)
        won, lost = self.features[prompts, chosen], self.features[prompts, rejected]
        theta = minimise(lambda theta: reward_model_loss(won @ theta, lost @ theta).mean(), won.shape[1])
        return (won - lost) @ theta

    def train(
        self, config: Mapping[str, Any], pairs: Int[Tensor, "n 3"], margins: Float[Tensor, " n"]
    ) -> Float[Tensor, "prompts k"]:
        """Log-probabilities of a policy with a logit a response, trained from the reference on all pairs at once."""
        objective = make_objective(config)
        prompts, *sides = pairs.unbind(1)
        places = [prompts * self.reference.shape[1] + side for side in sides]
        logits = self.reference.clone().requires_grad_()
        optimiser = torch.optim.Adam([logits], lr=RATE)
        ref_chosen, ref_rejected = (self.reference.flatten()[place] for place in places)
        for _ in range(STEPS):
            optimiser.zero_grad()
            policy = logits.log_softmax(1).flatten()
            # index_select, whose backward pass is several times faster than that of indexing.
            chosen, rejected = (policy.index_select(0, place) for place in places)
            loss = objective(PairScores(chosen, rejected, ref_chosen, ref_rejected, margins=margins)).mean()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's annotation is incomplete
            optimiser.step()
            objective.after_update()
        return logits.detach().log_softmax(1)

    def reward(self, policy: Float[Tensor, "prompts k"]) -> float:
        """Mean true reward of a policy."""
        return float((policy.exp() * self.rewards).sum(1).mean())


def plot(figures: Mapping[str, Interval]) -> Plot:
    """Mean true reward of every method."""
    shown = {name: figures[name] for name in ("reference", *METHODS, "MADPO c=4, noisy rewards", "best possible")}
    return bars(shown, title="True reward of the policy", x="mean true reward")


CLAIMS = [
    *(
        Claim(
            f"{name}: the minimiser lies within 0.15 of the target margin on every seed",
            f"MADPO distance, {name}",
            "allowed distance",
            lambda distance, allowed: bool((distance <= allowed).all()),
        )
        for name in ADAPTIVE
    ),
    *(
        Claim(f"{ours}: more reward than {theirs} on 90% of seeds", ours, theirs, lambda a, b: (a > b).mean() >= 0.9)
        for ours, theirs in (("MADPO c=2", "DPO"), ("MADPO c=4", "MADPO c=2"), ("MADPO c=4, noisy rewards", "DPO"))
    ),
]

RECIPE = Recipe(
    slug="madpo",
    title="DPO weighted by the margins of a reward model",
    year=2025,
    paper="arXiv 2510.05342",
    parts={"objective": {"kind": "madpo", "beta": 0.1, "c_max": 4.0, "tau": 7.0}},
    experiment=Experiment(run, CLAIMS, plot, seeds=10, quick_seeds=2),
)
