"""IFT: a model that reads its own predictions in training answers better on its own than one that never does.

Known answer: each prompt of four digits has one right response of eight, every digit of which depends on the one
before, so an early mistake spoils the rest. Both methods see the same demonstrations; greedy answers to all other
prompts are compared with the truth.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from prefkit.diagnostics import Interval
from prefkit.language import mix_embeddings, one_step_ahead_ids
from prefkit.objectives import ift_loss
from prefkit.recipes.recipe import Claim, Experiment, Figures, Recipe
from prefkit.report.plots import Plot, bars

DIGITS, LENGTH = 4, 8
BEGIN, SEPARATOR, VOCABULARY = 10, 11, 12
PROMPT = DIGITS + 2
TRAINING = 1500
STEPS, BATCH, WIDTH = 700, 96, 48
METHODS = {"SFT": (0.0, 0.0), "IFT": (0.2, 0.95)}
"""Lambda and gamma of each method; with 0 and 0 the loss is that of supervised fine-tuning."""


def run(seed: int) -> Figures:
    """Per cent of the prompts outside the demonstrations that each method answers wrongly."""
    generator = torch.Generator().manual_seed(seed)
    sequences = demonstrations(torch.randperm(10**DIGITS, generator=generator))
    training, test = sequences[:TRAINING], sequences[TRAINING:]
    figures = {}
    for name, (share, gamma) in METHODS.items():
        figures[f"{name} error, %"] = 100 * (1 - exact_match(train(training, share, gamma, seed), test))
    return figures


def demonstrations(numbers: Int[Tensor, " n"]) -> Int[Tensor, "n length"]:
    """Begin, the digits of each number, separator, and the response r_j = r_{j-1} + d_{j mod 4} + (j mod 3) mod 10."""
    digits = torch.stack([numbers // 10**place % 10 for place in reversed(range(DIGITS))], dim=1)
    response, last = [], digits[:, 0]
    for place in range(LENGTH):
        last = (last + digits[:, place % DIGITS] + place % 3) % 10
        response.append(last)
    edges = [torch.full((len(numbers), 1), token) for token in (BEGIN, SEPARATOR)]
    return torch.cat([edges[0], digits, edges[1], torch.stack(response, dim=1)], dim=1)


class Policy(nn.Module):
    """A small causal transformer that reads embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(PROMPT + LENGTH, WIDTH)
        # With places that begin as large as tokens both methods are done so early that nothing is left to tell apart.
        nn.init.normal_(self.place.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, embeds: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length vocabulary"]:
        """Logits of the next token at each place."""
        length = embeds.shape[1]
        past = nn.Transformer.generate_square_subsequent_mask(length)
        logits: Tensor = self.head(self.layers(embeds + self.place.weight[:length], mask=past, is_causal=True))
        return logits


def train(sequences: Int[Tensor, "n length"], share: float, gamma: float, seed: int) -> Policy:
    """A policy trained on demonstrations; both methods begin with the same weights and see the same batches."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = Policy()
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(policy.parameters(), lr=2e-3, weight_decay=0.01)
    for _ in range(STEPS):
        ids = sequences[torch.randint(len(sequences), (BATCH,), generator=generator)]
        labels = ids.masked_fill(torch.arange(ids.shape[1]) < PROMPT, -100)
        embeds = policy.embed(ids)
        if share:
            with torch.no_grad():
                ahead = one_step_ahead_ids(ids, labels, policy(embeds))
            embeds = mix_embeddings(embeds, policy.embed(ahead), share)
        logps = policy(embeds)[:, :-1].log_softmax(2).gather(2, ids[:, 1:, None]).squeeze(2)
        optimiser.zero_grad()
        loss = ift_loss(logps, labels[:, 1:] != -100, gamma=gamma).mean()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's annotation is incomplete
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 10.0)
        optimiser.step()
    return policy


@torch.no_grad()
def exact_match(policy: Policy, sequences: Int[Tensor, "n length"]) -> float:
    """Share of prompts whose greedy response is wholly right."""
    ids = sequences[:, :PROMPT]
    for _ in range(LENGTH):
        ids = torch.cat([ids, policy(policy.embed(ids))[:, -1:].argmax(2)], dim=1)
    return float((ids == sequences).all(1).float().mean())


def plot(figures: Mapping[str, Interval]) -> Plot:
    """Error of each method."""
    return bars(figures, title="Greedy answers from the same demonstrations", x="wrong answers, %")


CLAIMS = [
    Claim(
        "error of greedy answers at most 0.7 times SFT's",
        "IFT error, %",
        "SFT error, %",
        lambda ift, sft: ift.mean() <= 0.7 * sft.mean(),
    ),
    Claim(
        "fewer errors than SFT on at least two thirds of the seeds",
        "IFT error, %",
        "SFT error, %",
        lambda ift, sft: (ift < sft).mean() >= 2 / 3,
    ),
]

RECIPE = Recipe(
    slug="ift",
    title="Fine-tuning and alignment in one process",
    year=2024,
    paper="arXiv 2405.11870",
    parts={"objective": {"kind": "ift", "max_lambda": 0.2, "gamma": 0.95}},
    experiment=Experiment(run, CLAIMS, plot, seeds=8, quick_seeds=3),
)
