"""Rationales: what a pair is about, said in words, makes up for pairs that are not there.

Known answer: each prompt asks for one attribute of the response, which has to be found out from pairs in which all
other attributes vary at random. The rationale names it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from prefkit.diagnostics import Interval
from prefkit.objectives import Companions, PairScores, make_objective
from prefkit.recipes.recipe import Claim, Experiment, Figures, Recipe
from prefkit.recipes.testbeds import descend
from prefkit.report.plots import Curve, Plot, curves

ATTRIBUTES, PROMPTS, WIDTH = 6, 60, 48
PER_PROMPT = (1, 2)
TEST_PER_PROMPT = 50
WHY = ATTRIBUTES
"""The place of the rationale, after the places of a response's tokens."""


class Pairs(NamedTuple):
    """Pairs of responses, `[n, ATTRIBUTES]` tokens each, with prompt and rationale token, `[n]`."""

    prompts: Tensor
    chosen: Tensor
    rejected: Tensor
    rationales: Tensor


class Model(nn.Module):
    """Log-probabilities of the 12 attribute tokens at each place of a response, and in the place of the rationale."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt, self.place = nn.Embedding(PROMPTS, WIDTH), nn.Embedding(ATTRIBUTES + 1, WIDTH)
        self.mode = nn.Embedding(2, WIDTH)
        self.mix, self.skip = nn.Linear(2 * WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 2 * ATTRIBUTES)

    def forward(self) -> Tensor:
        """`[PROMPTS, ATTRIBUTES + 1, tokens]`, for all prompts."""
        places = torch.arange(ATTRIBUTES + 1)
        where = (self.place(places) + self.mode((places == WHY).long())).expand(PROMPTS, -1, -1)
        prompt = self.prompt.weight[:, None].expand_as(where)
        hidden = torch.tanh(self.mix(torch.cat([prompt, where], dim=2))) + self.skip(prompt)
        logps: Tensor = self.head(hidden).log_softmax(2)
        return logps


def run(seed: int) -> Figures:
    """Accuracy of the implicit reward on new pairs, by method and number of pairs a prompt."""
    generator = torch.Generator().manual_seed(seed)
    attribute = torch.randint(ATTRIBUTES, (PROMPTS,), generator=generator)
    value = torch.randint(2, (PROMPTS,), generator=generator)
    test = pairs(attribute, value, TEST_PER_PROMPT, generator)
    reference = pretrained(generator)
    figures = {}
    for count in PER_PROMPT:
        data = pairs(attribute, value, count, generator)
        figures[f"DPO, {count} pairs"] = accuracy(train("dpo", {}, reference, data), reference, test)
        options = {"rationale_weight": 1.0}
        figures[f"rationales, {count} pairs"] = accuracy(
            train("rationale_dpo", options, reference, data), reference, test
        )
        if count == 2:
            others = data.rationales[torch.randperm(len(data.rationales), generator=generator)]
            shuffled = train("rationale_dpo", options, reference, data._replace(rationales=others))
            figures["others' rationales, 2 pairs"] = accuracy(shuffled, reference, test)
            released = {"rationale_weight": 0.1, "rationale_term": "softplus"}
            squashed = train("rationale_dpo", released, reference, data)
            figures["released form, 2 pairs"] = accuracy(squashed, reference, test)
    for name in ("DPO", "rationales"):
        figures[f"{name}, mean of 1 and 2 pairs"] = (figures[f"{name}, 1 pairs"] + figures[f"{name}, 2 pairs"]) / 2
    return figures


def pairs(attribute: Tensor, value: Tensor, count: int, generator: torch.Generator) -> Pairs:
    """Pairs that differ, as far as it matters, in the attribute that their prompt asks for."""
    prompts = torch.arange(PROMPTS).repeat(count)
    chosen, rejected = torch.randint(2, (2, len(prompts), ATTRIBUTES), generator=generator)
    asked, wanted = attribute[prompts], value[prompts]
    rows = torch.arange(len(prompts))
    chosen[rows, asked], rejected[rows, asked] = wanted, 1 - wanted
    tokens = 2 * torch.arange(ATTRIBUTES)
    return Pairs(prompts, tokens + chosen, tokens + rejected, 2 * asked + wanted)


def pretrained(generator: torch.Generator) -> Model:
    """A model of random responses."""
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        model = Model()
    bits = torch.randint(2, (20 * PROMPTS, ATTRIBUTES), generator=generator)
    prompts, tokens = torch.arange(PROMPTS).repeat(20), 2 * torch.arange(ATTRIBUTES) + bits
    for _ in descend(
        model.parameters(), lambda: -logps(model(), prompts, tokens).mean(), steps=150, learning_rate=3e-3
    ):
        pass
    return model


def logps(table: Tensor, prompts: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of each response, `[n]`."""
    return table[prompts[:, None], torch.arange(ATTRIBUTES), tokens].sum(1)


def train(kind: str, options: Mapping[str, object], reference: Model, data: Pairs) -> Model:
    """The model after 300 updates on all pairs."""
    objective = make_objective({"kind": kind, "beta": 0.1, **options})
    model = copy.deepcopy(reference)
    with torch.no_grad():
        table = reference()
        ref = logps(table, data.prompts, data.chosen), logps(table, data.prompts, data.rejected)
    count = len(data.prompts)

    def loss() -> Tensor:
        table = model()
        rationales = Companions(
            policy_logps=table[data.prompts, WHY, data.rationales],
            lengths=torch.ones(count, dtype=torch.long),
            entry=torch.arange(count),
            label=torch.zeros(count, dtype=torch.long),
        )
        policy = logps(table, data.prompts, data.chosen), logps(table, data.prompts, data.rejected)
        return objective(PairScores(*policy, *ref, companions=(rationales,))).mean()

    for _ in descend(model.parameters(), loss, steps=300, learning_rate=1e-3):
        pass
    return model


def accuracy(model: Model, reference: Model, test: Pairs) -> float:
    """Share of pairs that the implicit reward orders rightly, ties counting half."""
    with torch.no_grad():
        change = model() - reference()
    margin = logps(change, test.prompts, test.chosen) - logps(change, test.prompts, test.rejected)
    return float(((margin.sign() + 1) / 2).mean())


def plot(figures: Mapping[str, Interval]) -> Plot:
    """Accuracy over the number of pairs."""
    lines = {}
    for name in ("rationales", "DPO"):
        line = [figures[f"{name}, {count} pairs"] for count in PER_PROMPT]
        lines[name] = Curve(PER_PROMPT, [i.mean for i in line], [i.low for i in line], [i.high for i in line])
    return curves(lines, title="Accuracy on new pairs", x="pairs a prompt", y="accuracy")


CLAIMS = [
    Claim(
        "rationales add at least 0.04 of accuracy (mean of 1 and 2 pairs a prompt)",
        "rationales, mean of 1 and 2 pairs",
        "DPO, mean of 1 and 2 pairs",
        lambda ours, dpo: ours.mean() >= dpo.mean() + 0.04,
    ),
    Claim(
        "rationales of other pairs cost at least 0.02 (2 pairs)",
        "others' rationales, 2 pairs",
        "DPO, 2 pairs",
        lambda others, dpo: others.mean() <= dpo.mean() - 0.02,
    ),
    Claim(
        "1 pair with its rationale is worth 2 without (within 0.02)",
        "rationales, 1 pairs",
        "DPO, 2 pairs",
        lambda ours, dpo: ours.mean() >= dpo.mean() - 0.02,
    ),
]

RECIPE = Recipe(
    slug="rationales",
    title="Preferences with the reasons for them",
    year=2024,
    paper="arXiv 2407.14477",
    parts={"objective": {"kind": "rationale_dpo", "beta": 0.1, "rationale_weight": 2.0}},
    experiment=Experiment(run, CLAIMS, plot, seeds=4, quick_seeds=2),
)
