"""MAPL: instructions that a program can check teach a reward model which instructions a response obeys.

Known answer: responses have 8 attributes, instructions ask for signs of them. People's labels cover prompts of one or
two instructions and are swayed by style; what is wanted is the order by instructions obeyed, for prompts of many.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from prefkit.diagnostics import Interval
from prefkit.objectives import inter_loss, intra_loss, levels_loss, logistic
from prefkit.recipes.recipe import Claim, Experiment, Figures, Recipe
from prefkit.recipes.testbeds import descend
from prefkit.report.plots import Plot, bars

ATTRIBUTES, NOISE, STYLE = 8, 4, 8
PAIRS, TESTED, BATCH, STEPS, HIDDEN = 400, 3000, 64, 600, 64
PICKED = 0.35
"""Probability that an attribute which the prompt leaves free is asked for in an added instruction."""
METHODS = {"BT": (0.0, 0.0), "intra": (1.0, 0.0), "inter": (0.0, 1.0), "both": (1.0, 1.0)}
"""Weights of the two terms."""


class Pairs(NamedTuple):
    """Prompts `[n, ATTRIBUTES]`, in -1, 0 and 1, and two responses `[n, ATTRIBUTES + NOISE]` each."""

    prompts: Tensor
    first: Tensor
    second: Tensor


def run(seed: int) -> Figures:
    """Accuracy by instructions obeyed, and agreement with people's preferences, of each choice of terms."""
    generator = torch.Generator().manual_seed(seed)
    data = pairs(PAIRS, (1, 2), generator)
    wins = (torch.rand(PAIRS, generator=generator) < torch.sigmoid(preference(data)))[:, None]
    data = Pairs(data.prompts, torch.where(wins, data.first, data.second), torch.where(wins, data.second, data.first))
    tests = {"1-2": pairs(TESTED, (1, 2), generator), "4-6": pairs(TESTED, (4, 6), generator)}
    liked = torch.rand(TESTED, generator=generator) < torch.sigmoid(preference(tests["1-2"]))
    figures = {}
    for method, weights in METHODS.items():
        model = train(weights, data, seed)
        for name, test in tests.items():
            wanted = obeyed(test.prompts, test.first) - obeyed(test.prompts, test.second)
            figures[f"{method}, {name} instructions"] = accuracy(margin(model, test), wanted)
        figures[f"{method}, agreement"] = accuracy(margin(model, tests["1-2"]), liked.float() - 0.5)
    return figures


def pairs(count: int, instructions: tuple[int, int], generator: torch.Generator) -> Pairs:
    """Random prompts of a number of instructions, and random responses."""
    number = torch.randint(instructions[0], instructions[1] + 1, (count, 1), generator=generator)
    asked = torch.rand(count, ATTRIBUTES, generator=generator).argsort(1).argsort(1) < number
    signs = 2 * torch.randint(2, (count, ATTRIBUTES), generator=generator) - 1
    first, second = torch.randn(2, count, ATTRIBUTES + NOISE, generator=generator)
    return Pairs((asked * signs).float(), first, second)


def obeyed(prompts: Tensor, responses: Tensor) -> Tensor:
    """Number of instructions that each response obeys."""
    return (prompts * responses[:, :ATTRIBUTES] > 0).sum(1)


def preference(data: Pairs) -> Tensor:
    """Log-odds with which people prefer the first response: instructions obeyed, and style."""
    count = obeyed(data.prompts, data.first) - obeyed(data.prompts, data.second)
    return 2 * count + 1.5 * (data.first[:, STYLE] - data.second[:, STYLE])


def margin(model: nn.Module, data: Pairs) -> Tensor:
    """Reward of the first response less that of the second."""
    with torch.no_grad():
        return rewards(model, data.prompts, data.first) - rewards(model, data.prompts, data.second)


def accuracy(margins: Tensor, wanted: Tensor) -> float:
    """Share of pairs of which the reward has the wanted order; pairs without one are left out."""
    told = wanted != 0
    return float((margins[told].sign() == wanted[told].sign()).float().mean())


def rewards(model: nn.Module, prompts: Tensor, responses: Tensor) -> Tensor:
    """Reward of each response to its prompt."""
    found: Tensor = model(torch.cat([prompts, responses], dim=1))[:, 0]
    return found


def train(weights: tuple[float, float], data: Pairs, seed: int) -> nn.Module:
    """A reward model from the pairs (the first response being preferred) and the terms with a weight."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        width = 2 * ATTRIBUTES + NOISE
        model = nn.Sequential(
            nn.Linear(width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 1)
        )

    def loss() -> Tensor:
        rows = torch.randint(PAIRS, (BATCH,), generator=generator)
        x, chosen, rejected = data.prompts[rows], data.first[rows], data.second[rows]
        own = rewards(model, x, chosen), rewards(model, x, rejected)
        nothing = own[0].new_zeros(1)
        intra = intra_terms(model, x, chosen, rejected, generator) if weights[0] else nothing
        inter = inter_terms(model, x, chosen, rejected, own, generator) if weights[1] else nothing
        original = logistic(own[0] - own[1], beta=1.0)
        return levels_loss(original, intra, inter, intra_weight=weights[0], inter_weight=weights[1]).loss

    for _ in descend(model.parameters(), loss, steps=STEPS, learning_rate=2e-3, weight_decay=0.01):
        pass
    return model


def intra_terms(
    model: nn.Module, prompts: Tensor, chosen: Tensor, rejected: Tensor, generator: torch.Generator
) -> Tensor:
    """Each response under a prompt with instructions that it obeys, and under one that turns some of them round."""
    x, y = prompts.repeat(2, 1), torch.cat([chosen, rejected])
    picked = free(x, generator)
    kept = picked.any(1)
    x, y, picked = x[kept], y[kept], picked[kept]
    signs = picked * y[:, :ATTRIBUTES].sign()
    # A random part of the picked ones, and one of them in any case.
    order = torch.rand(picked.shape, generator=generator).masked_fill(~picked, 2.0)
    turned = picked & ((order < 0.5) | (order == order.amin(1, keepdim=True)))
    worse = torch.where(turned, -signs, signs)
    return intra_loss(rewards(model, x + signs, y), rewards(model, x + worse, y))


def inter_terms(
    model: nn.Module,
    prompts: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    own: tuple[Tensor, Tensor],
    generator: torch.Generator,
) -> Tensor:
    """Each pair under its own prompt and under one with more instructions, which the chosen response obeys or not."""
    picked = free(prompts, generator)
    against = torch.rand(picked.shape, generator=generator) < 0.5
    added = picked * chosen[:, :ATTRIBUTES].sign() * torch.where(against, -1.0, 1.0)
    order = (obeyed(added, chosen) - obeyed(added, rejected)).sign()
    kept = order != 0
    new = rewards(model, prompts + added, chosen), rewards(model, prompts + added, rejected)
    stronger = order > 0
    strong = [torch.where(stronger, here, there)[kept] for here, there in zip(new, own, strict=True)]
    weak = [torch.where(stronger, there, here)[kept] for here, there in zip(new, own, strict=True)]
    return inter_loss(*strong, *weak)


def free(prompts: Tensor, generator: torch.Generator) -> Tensor:
    """Attributes of which the prompt says nothing, picked at random."""
    return (prompts == 0) & (torch.rand(prompts.shape, generator=generator) < PICKED)


def plot(figures: Mapping[str, Interval]) -> Plot:
    """Accuracy for prompts of many instructions."""
    return bars(
        {method: figures[f"{method}, 4-6 instructions"] for method in METHODS},
        title="Order by instructions obeyed, prompts of 4 to 6",
        x="accuracy",
        baseline=0.5,
    )


CLAIMS = [
    Claim(
        "both terms add at least 0.08 of accuracy (4-6 instructions)",
        "both, 4-6 instructions",
        "BT, 4-6 instructions",
        lambda both, bt: both.mean() >= bt.mean() + 0.08,
    ),
    Claim(
        "they add some on every seed",
        "both, 4-6 instructions",
        "BT, 4-6 instructions",
        lambda both, bt: bool((both > bt).all()),
    ),
    *(
        Claim(
            f"{term} alone adds at least 0.06",
            f"{term}, 4-6 instructions",
            "BT, 4-6 instructions",
            lambda one, bt: one.mean() >= bt.mean() + 0.06,
        )
        for term in ("intra", "inter")
    ),
    Claim(
        "agreement with people's preferences falls by at most 0.02",
        "both, agreement",
        "BT, agreement",
        lambda both, bt: both.mean() >= bt.mean() - 0.02,
    ),
]

RECIPE = Recipe(
    slug="mapl",
    title="Preferences at several levels for prompts of many instructions",
    year=2025,
    paper="arXiv 2505.12845",
    parts={"objective": {"kind": "mapl", "beta": 0.1, "intra_weight": 1.0, "inter_weight": 1.0}},
    experiment=Experiment(run, CLAIMS, plot, seeds=5, quick_seeds=1),
)
