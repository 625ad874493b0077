"""SPO: a policy that also learns how much key content a response has lost ranks fresh responses better.

Known answer: the quality of a response is the number of its tokens that belong to the prompt's topic. Both methods see
the same few pairs, some of them labelled wrongly; the implicit reward is compared with the true quality.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from prefkit.comparisons import remove_key_content
from prefkit.diagnostics import Interval
from prefkit.objectives import Companions, Objective, PairScores, SelfSupervisedDegree, make_objective
from prefkit.recipes.recipe import Claim, Experiment, Figures, Recipe
from prefkit.report.plots import Plot, bars

PAD, BEGIN, END, SEPARATOR = range(4)
TOPICS, FIRST_TOPIC, FIRST_KEY, FIRST_FILLER, VOCABULARY = 10, 4, 14, 34, 54
MOST, WIDTH = 4, 48
TEXTS, PAIRS, FLIPS, FRESH = 2000, 300, 0.15, 400
GAMMA, RATIOS = 0.3, (0.0, 0.5, 1.0)
METHODS: Mapping[str, Mapping[str, Any]] = {
    "DPO": {"kind": "dpo", "beta": 0.1},
    "SPO": {
        "kind": "spo",
        "beta": 0.1,
        "auxiliary": [{"kind": "degree", "gamma": GAMMA, "ratios": RATIOS, "heads": "shared"}],
    },
}

Draw = Callable[[int, int], int]
"""A whole number from the first to the second, both included."""


class Policy(nn.Module):
    """A recurrent language model."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.mix = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def score(self, texts: Sequence[tuple[int, list[int]]]) -> tuple[Tensor, Tensor]:
        """Log-probability of each response given its topic, and the state at its last token."""
        ids = nn.utils.rnn.pad_sequence(
            [torch.tensor([BEGIN, FIRST_TOPIC + topic, SEPARATOR, *words, END]) for topic, words in texts], True, PAD
        )
        states = self.mix(self.embed(ids))[0]
        # The topic and what stands around it are given.
        logps = self.head(states[:, 2:-1]).log_softmax(2).gather(2, ids[:, 3:, None]).squeeze(2)
        last = (ids != PAD).sum(1) - 1
        return (logps * (ids[:, 3:] != PAD)).sum(1), states[torch.arange(len(ids)), last]


def run(seed: int) -> Figures:
    """How well each method's implicit reward ranks fresh responses, and how well degrees are told apart."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    def text(topic: int, quality: int) -> tuple[int, list[int]]:
        words = [FIRST_KEY + 2 * topic + draw(0, 1) for _ in range(quality)]
        words += [draw(FIRST_FILLER, VOCABULARY - 1) for _ in range(draw(4, 6))]
        return topic, [words[place] for place in torch.randperm(len(words), generator=generator)]

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        reference = Policy()
    pretrain(reference, [text(draw(0, TOPICS - 1), draw(0, MOST)) for _ in range(TEXTS)], generator)
    pairs = []
    for _ in range(PAIRS):
        topic, better = draw(0, TOPICS - 1), draw(1, MOST)
        pair = text(topic, better), text(topic, draw(0, better - 1))
        pairs.append(pair[::-1] if float(torch.rand((), generator=generator)) < FLIPS else pair)
    fresh = [(topic, draw(0, MOST)) for topic in torch.randint(TOPICS, (FRESH,), generator=generator).tolist()]
    texts, quality = [text(*each) for each in fresh], torch.tensor([quality for _, quality in fresh])
    best = [text(draw(0, TOPICS - 1), MOST) for _ in range(FRESH)]

    figures = {}
    for name, config in METHODS.items():
        policy, objective = copy.deepcopy(reference), make_objective(config)
        train(policy, reference, objective, pairs, draw, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            reward = policy.score(texts)[0] - reference.score(texts)[0]
            figures[f"{name} ranking"] = ranking(reward, quality)
            figures[f"{name} correlation"] = float(spearmanr(reward, quality).statistic)
            for part in objective.stateful:
                assert isinstance(part, SelfSupervisedDegree)
                part(variants(policy, best, best, draw), len(best))
                figures["degree accuracy"] = float(part.figures["degree_accuracy"].mean())
    figures["ranking gain"] = figures["SPO ranking"] - figures["DPO ranking"]
    figures["chance"] = 1 / len(RATIOS)
    return figures


def pretrain(policy: Policy, texts: Sequence[tuple[int, list[int]]], generator: torch.Generator) -> None:
    """Learn the language."""
    optimiser = torch.optim.Adam(policy.parameters(), lr=3e-3)
    for _ in range(200):
        batch = [texts[place] for place in torch.randint(len(texts), (64,), generator=generator).tolist()]
        optimiser.zero_grad()
        loss = -policy.score(batch)[0].sum() / sum(len(words) + 1 for _, words in batch)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's annotation is incomplete
        optimiser.step()


def train(
    policy: Policy,
    reference: Policy,
    objective: Objective[Any],
    pairs: Sequence[tuple[tuple[int, list[int]], tuple[int, list[int]]]],
    draw: Draw,
    generator: torch.Generator,
) -> None:
    """Learn from the pairs."""
    for part in objective.stateful:
        assert isinstance(part, SelfSupervisedDegree)
        part.build(WIDTH)
    optimiser = torch.optim.Adam([*policy.parameters(), *objective.parameters()], lr=1e-3)
    for _ in range(150):
        batch = [pairs[place] for place in torch.randint(len(pairs), (32,), generator=generator).tolist()]
        chosen, rejected = ([pair[side] for pair in batch] for side in (0, 1))
        with torch.no_grad():
            ref = [reference.score(side)[0] for side in (chosen, rejected)]
        better, worse = (policy.score(side)[0] for side in (chosen, rejected))
        companions = (variants(policy, chosen, rejected, draw),) if len(objective.stateful) else None
        optimiser.zero_grad()
        losses = objective(PairScores(better, worse, ref[0], ref[1], companions=companions))
        losses.mean().backward()  # type: ignore[no-untyped-call]  # torch's annotation is incomplete
        optimiser.step()


def variants(
    policy: Policy, chosen: Sequence[tuple[int, list[int]]], rejected: Sequence[tuple[int, list[int]]], draw: Draw
) -> Companions:
    """One variant of each response that has key content, of a degree drawn at random."""
    texts, entries, labels = [], [], []
    for side, responses in enumerate((chosen, rejected)):
        for entry, (topic, words) in enumerate(responses):
            spans = [[place, place + 1] for place, word in enumerate(words) if word < FIRST_FILLER]
            if not spans:
                continue
            degree = draw(0, len(RATIOS) - 1)
            # Any of the key tokens is as good as another.
            scores = [draw(0, 1_000_000) for _ in spans]
            texts.append((topic, remove_key_content(words, spans, scores, RATIOS[degree])[0]))
            entries.append(entry)
            labels.append(side * len(RATIOS) + degree)
    logps, states = policy.score(texts)
    lengths = torch.tensor([len(words) + 1 for _, words in texts])
    return Companions(logps, lengths, torch.tensor(entries), torch.tensor(labels), last_states=states)


def ranking(reward: Tensor, quality: Tensor) -> float:
    """Share of pairs of different quality in which the better response has the higher reward."""
    better = quality[:, None] > quality[None, :]
    return float((reward[:, None] > reward[None, :])[better].double().mean())


def plot(figures: Mapping[str, Interval]) -> Plot:
    """Ranking accuracy and correlation with the true quality."""
    shown = {f"{name}, {what}": figures[f"{name} {what}"] for what in ("ranking", "correlation") for name in METHODS}
    return bars(shown, title="Implicit reward of fresh responses against their true quality", x="accuracy, Spearman")


CLAIMS = [
    Claim(
        "ranking accuracy at least 0.005 above DPO's",
        "SPO ranking",
        "DPO ranking",
        lambda spo, dpo: (spo - dpo).mean() >= 0.005,
    ),
    Claim(
        "ranks better than DPO on three seeds of four",
        "SPO ranking",
        "DPO ranking",
        lambda spo, dpo: (spo > dpo).mean() >= 0.75,
    ),
    Claim(
        "degrees of fresh variants told apart, accuracy at least 0.50",
        "degree accuracy",
        "chance",
        lambda degree, chance: degree.mean() >= 0.50,
    ),
]

RECIPE = Recipe(
    slug="spo",
    title="Self-supervised degrees of preference beside alignment",
    year=2024,
    paper="arXiv 2409.17791",
    parts={"objective": {"kind": "spo", "beta": 0.1, "auxiliary": [{"kind": "degree", "gamma": 0.1}]}},
    experiment=Experiment(run, CLAIMS, plot, seeds=4, quick_seeds=1),
)
