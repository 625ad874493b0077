"""IFT: a model that reads its own predictions in training answers better on its own than one that never does.

Known answer: each prompt of four digits has one right response of eight, every digit of which depends on the one
before, so an early mistake spoils the rest. Both methods see the same demonstrations; greedy answers are compared with
the truth.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from prefkit.diagnostics import Interval
from prefkit.language import mix_embeddings, one_step_ahead_ids
from prefkit.objectives import ift_loss
from prefkit.recipes.recipe import Claim, Experiment, Figures, Recipe
from prefkit.report.plots import Plot, bars

DIGITS, LENGTH = 4, 8
BEGIN, SEPARATOR, VOCABULARY = 10, 11, 12
PROMPT = DIGITS + 2
TRAINING, TEST = 1500, 1000
STEPS, BATCH = 700, 96
METHODS = {"SFT": (0.0, 0.0), "IFT": (0.2, 0.95)}
"""Lambda and gamma of each method; with 0 and 0 the loss is that of supervised fine-tuning."""


def run(seed: int) -> Figures:
    """Share of test prompts that each method answers wrongly."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randperm(10**DIGITS, generator=generator)[: TRAINING + TEST]
    sequences = demonstrations(numbers)
    training, test = sequences[:TRAINING], sequences[TRAINING:]
    figures = {}
    for name, (share, gamma) in METHODS.items():
        model = train(training, share, gamma, seed)
        figures[f"{name} error"] = 1.0 - exact_match(model, test)
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


def train(sequences: Int[Tensor, "n length"], share: float, gamma: float, seed: int) -> GPT2LMHeadModel:
    """A small transformer, trained on demonstrations; both methods see the same weights and batches first."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        size = PROMPT + LENGTH
        config = GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=size,
            n_embd=48,
            n_layer=2,
            n_head=4,
            n_inner=96,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=BEGIN,
            eos_token_id=SEPARATOR,
        )
        model = GPT2LMHeadModel(config)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    embed = model.get_input_embeddings()
    for _ in range(STEPS):
        ids = sequences[torch.randint(len(sequences), (BATCH,), generator=generator)]
        labels = ids.masked_fill(torch.arange(ids.shape[1]) < PROMPT, -100)
        with torch.no_grad():
            embeds = embed(ids)
            if share:
                ahead = one_step_ahead_ids(ids, labels, model(inputs_embeds=embeds).logits)
                embeds = mix_embeddings(embeds, embed(ahead), share)
        logps = model(inputs_embeds=embeds).logits[:, :-1].log_softmax(2).gather(2, ids[:, 1:, None]).squeeze(2)
        optimiser.zero_grad()
        ift_loss(logps, labels[:, 1:] != -100, gamma=gamma).mean().backward()  # type: ignore[no-untyped-call]  # torch
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimiser.step()
    return model


@torch.no_grad()
def exact_match(model: GPT2LMHeadModel, sequences: Int[Tensor, "n length"]) -> float:
    """Share of prompts whose greedy response is wholly right."""
    ids = sequences[:, :PROMPT]
    for _ in range(LENGTH):
        ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(2)], dim=1)
    return float((ids == sequences).all(1).float().mean())


def plot(figures: Mapping[str, Interval]) -> Plot:
    """Error of each method."""
    return bars(figures, title="Greedy answers from the same demonstrations", x="share of wrong answers")


CLAIMS = [
    Claim(
        "error of greedy answers at most 0.7 times SFT's",
        "IFT error",
        "SFT error",
        lambda ift, sft: ift.mean() <= 0.7 * sft.mean(),
    ),
    Claim(
        "fewer errors than SFT on two seeds of three",
        "IFT error",
        "SFT error",
        lambda ift, sft: (ift < sft).mean() >= 2 / 3,
    ),
]

RECIPE = Recipe(
    slug="ift",
    title="Fine-tuning and alignment in one process",
    year=2024,
    paper="arXiv 2405.11870",
    parts={"objective": {"kind": "ift", "max_lambda": 0.2, "gamma": 0.95}},
    experiment=Experiment(run, CLAIMS, plot, seeds=3, quick_seeds=1),
)
