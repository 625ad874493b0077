"""Calibrated decoding: likelihoods that rise with quality, so that plain beam search finds better translations.

Known answer: a toy language is translated word by word, but the training translations are so corrupted that the most
likely word is often wrong. Samples of the trained model still contain good translations, and a noisy judge of their
quality is enough to find them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefkit.diagnostics import Interval, evaluate_calibration
from prefkit.objectives import DemonstrationScores, ListScores, make_objective
from prefkit.recipes.recipe import Claim, Experiment, Figures, Recipe
from prefkit.report.plots import Plot, bars

WORDS, LENGTH, LONGEST = 10, 6, 8
END, START = WORDS, WORDS + 1
CANDIDATES = 16
METHODS: Mapping[str, Mapping[str, Any]] = {
    "SFT on the best": {"calibration_weight": 0.0},
    "CPO": {"calibration_weight": 0.0, "cpo_weight": 1.0},
    "calibration": {},
}


class Translator(nn.Module):
    """A recurrent model that reads the word to translate and the word it wrote before."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(WORDS + 1, width), nn.Embedding(WORDS + 2, width)
        self.memory, self.out = nn.GRU(2 * width, width, batch_first=True), nn.Linear(width, WORDS + 1)

    def step(self, source: Tensor, place: int, before: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the next word, `[n, words + 1]`, and the new state."""
        word = source[:, place] if place < LENGTH else torch.full_like(before, WORDS)
        _, state = self.memory(torch.cat([self.source(word), self.target(before)], dim=1)[:, None], state[None])
        return self.out(state[0]).log_softmax(1), state[0]

    def begin(self, count: int) -> tuple[Tensor, Tensor]:
        """What stands before the first word, and the first state."""
        return torch.full((count,), START), torch.zeros(count, self.memory.hidden_size)

    def forward(self, source: Tensor, text: Tensor) -> Tensor:
        """Log-probability of each token of texts, `[n, longest]`, 0 after the end token."""
        words = F.pad(source, (0, LONGEST - LENGTH), value=WORDS)
        before = F.pad(text[:, :-1], (1, 0), value=START)
        states, _ = self.memory(torch.cat([self.source(words), self.target(before)], dim=2))
        logps: Tensor = self.out(states).log_softmax(2).gather(2, text[:, :, None]).squeeze(2)
        return logps * _held(text)


@dataclass(frozen=True)
class World:
    """The language: the right word for each word, and the wrong one that is usually written for half of them."""

    right: Tensor
    wrong: Tensor
    misled: Tensor

    @classmethod
    def sample(cls, generator: torch.Generator) -> World:
        """A language."""
        right = torch.randperm(WORDS, generator=generator)
        wrong = (right + torch.randint(1, WORDS, (WORDS,), generator=generator)) % WORDS
        misled = torch.randperm(WORDS, generator=generator) < WORDS // 2
        return cls(right, wrong, misled)

    def sources(self, count: int, generator: torch.Generator) -> Tensor:
        """Sentences to translate."""
        return torch.randint(WORDS, (count, LENGTH), generator=generator)

    def corrupted(self, source: Tensor, generator: torch.Generator) -> Tensor:
        """Translations as somebody careless writes them, with end tokens after their last word."""
        shape = source.shape
        chance = torch.rand(shape, generator=generator)
        noise = torch.where(chance < 0.1, torch.randint(WORDS, shape, generator=generator), self.right[source])
        words = torch.where(
            self.misled[source], torch.where(chance < 0.65, self.wrong[source], self.right[source]), noise
        )
        cut = torch.rand(len(source), generator=generator) < 0.2
        short = torch.randint(1, 4, (len(source),), generator=generator)
        lengths = torch.where(cut, short, LENGTH)
        words = words.masked_fill(torch.arange(LENGTH) >= lengths[:, None], END)
        return F.pad(words, (0, LONGEST - LENGTH), value=END)

    def quality(self, source: Tensor, text: Tensor) -> Tensor:
        """Share of the places, of the longer of text and right translation, in which they agree."""
        words = (_held(text) & (text != END)).sum(1)
        agree = ((text[:, :LENGTH] == self.right[source]) & _held(text)[:, :LENGTH]).sum(1)
        return agree / words.clamp(min=LENGTH)


def _held(text: Tensor) -> Tensor:
    """Which tokens belong to a text: those up to its first end token."""
    ended = (text == END).long()
    return ended.cumsum(1) - ended == 0


@torch.no_grad()
def sample(model: Translator, source: Tensor, generator: torch.Generator) -> Tensor:
    """A translation of each source, `[n, longest]`, drawn from the model."""
    before, state = model.begin(len(source))
    text = []
    for place in range(LONGEST):
        logps, state = model.step(source, place, before, state)
        before = torch.multinomial(logps.exp(), 1, generator=generator).squeeze(1)
        text.append(before)
    return torch.stack(text, dim=1)


@torch.no_grad()
def beam_search(model: Translator, source: Tensor, width: int = 5) -> Tensor:
    """The most likely translation of each source that a beam of partial translations finds."""
    count = len(source)
    sources = source.repeat_interleave(width, 0)
    before, state = model.begin(count * width)
    text = torch.zeros(count * width, 0, dtype=torch.long)
    totals = torch.full((count, width), -torch.inf)
    totals[:, 0] = 0.0
    ended = torch.zeros(count * width, dtype=torch.bool)
    for place in range(LONGEST):
        logps, state = model.step(sources, place, before, state)
        # An ended translation goes on with end tokens, at no cost.
        logps = torch.where(ended[:, None], -torch.inf, logps)
        logps[:, END] = torch.where(ended, 0.0, logps[:, END])
        options = (totals.view(-1, 1) + logps).view(count, -1)
        totals, best = options.topk(width, dim=1)
        parents = (torch.arange(count)[:, None] * width + best // (WORDS + 1)).flatten()
        before = (best % (WORDS + 1)).flatten()
        text, state = torch.cat([text[parents], before[:, None]], dim=1), state[parents]
        ended = ended[parents] | (before == END)
    return text.view(count, width, -1)[:, 0]


def imitate(world: World, generator: torch.Generator) -> Translator:
    """The base model, trained on corrupted translations."""
    model = Translator()
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    # Summed: a mean over the tokens of each sentence would make the model expect too many short ones.
    objective = make_objective({"kind": "sft", "imitation": "sft"})
    source = world.sources(4000, generator)
    text = world.corrupted(source, generator)
    for _ in range(8):
        for rows in torch.split(torch.randperm(len(source), generator=generator), 64):
            logps = model(source[rows], text[rows]).sum(1)
            _update(optimiser, objective(DemonstrationScores(logps, _held(text[rows]).sum(1))).mean())
    return model


def calibrate(
    base: Translator, options: Mapping[str, Any], source: Tensor, text: Tensor, ratings: Tensor
) -> Translator:
    """The base model after one pass over rated lists of its own samples, eight lists an update."""
    model = Translator()
    model.load_state_dict(base.state_dict())
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    objective = make_objective({"kind": "calibration", **options})
    for lists in torch.split(torch.arange(len(ratings)), 8):
        rows = (lists[:, None] * CANDIDATES + torch.arange(CANDIDATES)).flatten()
        held = ratings[lists]
        scores = ListScores(
            policy_logps=model(source[rows], text[rows]).sum(1).view_as(held),
            ranks=held.argsort(1, descending=True).argsort(1),
            mask=torch.ones_like(held, dtype=torch.bool),
            lengths=_held(text[rows]).sum(1).view_as(held),
            ratings=held,
        )
        _update(optimiser, objective(scores).mean())
    return model


def _update(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch's annotation is incomplete
    optimiser.step()


def run(seed: int) -> Figures:
    """Quality of beam search, and correlation of likelihood with quality, of the base model and of each method."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        world = World.sample(generator)
        base = imitate(world, generator)
        source = world.sources(200, generator).repeat_interleave(CANDIDATES, 0)
        text = sample(base, source, generator)
        judged = world.quality(source, text) + 0.03 * torch.randn(len(text), generator=generator)
        ratings = judged.view(-1, CANDIDATES)
        models = {"base": base} | {
            name: calibrate(base, options, source, text, ratings) for name, options in METHODS.items()
        }
    new = world.sources(150, generator)
    rows = new.repeat_interleave(CANDIDATES, 0)
    lists = torch.arange(150).repeat_interleave(CANDIDATES)
    samples = sample(base, rows, generator)
    quality = world.quality(rows, samples)
    figures = {"best of 16 quality": float(quality.view(-1, CANDIDATES).amax(1).mean())}
    for name, model in models.items():
        with torch.no_grad():
            logps = model(rows, samples).sum(1)
        figures[f"{name} quality"] = float(world.quality(new, beam_search(model, new)).mean())
        figures[f"{name} correlation"] = evaluate_calibration(logps, quality, lists).per_list["pearson"].mean
    return figures


def plot(figures: Mapping[str, Interval]) -> Plot:
    """Quality of beam search by method."""
    names = ("base", *METHODS, "best of 16")
    return bars({name: figures[f"{name} quality"] for name in names}, title="Quality of beam search", x="quality")


CLAIMS = [
    Claim(
        "correlation with quality at least 0.08 above SFT on the best sample",
        "calibration correlation",
        "SFT on the best correlation",
        lambda ours, other: ours.mean() >= other.mean() + 0.08,
    ),
    Claim(
        "correlation with quality at least 0.02 above CPO",
        "calibration correlation",
        "CPO correlation",
        lambda ours, other: ours.mean() >= other.mean() + 0.02,
    ),
    Claim(
        "beam search at least 0.3 better than the base model's",
        "calibration quality",
        "base quality",
        lambda ours, other: ours.mean() >= other.mean() + 0.3,
    ),
    Claim(
        "beam search at least as good as the base model's best of 16",
        "calibration quality",
        "best of 16 quality",
        lambda ours, other: ours.mean() >= other.mean(),
    ),
    Claim(
        "beam search at most 0.01 worse than SFT on the best sample",
        "calibration quality",
        "SFT on the best quality",
        lambda ours, other: ours.mean() >= other.mean() - 0.01,
    ),
]

RECIPE = Recipe(
    slug="calibrated-decoding",
    title="Likelihoods of translations calibrated to quality",
    year=2025,
    paper="arXiv 2504.19044",
    parts={"objective": {"kind": "calibration"}},
    experiment=Experiment(run, CLAIMS, plot, seeds=3, quick_seeds=1),
)
