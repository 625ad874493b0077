"""FLR: the likelihood of what a satisfied user would say next is a reward, without a single preference label.

Known answer: a response is good if it holds the prompt's key word. Users say so afterwards, but are wrong at times. A
small language model of such dialogues ranks responses by the likelihood of follow-ups; its pairs align a policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from prefkit.diagnostics import Interval, pairwise_accuracy
from prefkit.language import feedback_loss, flr_reward, span_logps
from prefkit.objectives import dpo_loss
from prefkit.recipes.recipe import Claim, Experiment, Figures, Recipe
from prefkit.report.plots import Plot, bars
from prefkit.selection import mine_pairs

PROMPTS, WORDS = 4, 6
BEGIN, PADDING = 0, 1
FIRST_PROMPT, FIRST_WORD = 2, 2 + PROMPTS
FIRST_SAID = FIRST_WORD + WORDS
POSITIVE = ((0,), (1, 2), (2, 0, 3), (4, 3))
NEGATIVE = ((5,), (6, 2), (7, 5, 3), (4, 6))
VOCABULARY = FIRST_SAID + 8
START = 4  # begin, prompt, two words, then the follow-up
SAMPLES, MINED_PROMPTS, TEST = 8, 400, 600
Rng: TypeAlias = np.random.Generator


def run(seed: int) -> Figures:
    """Accuracy of each reward, and how likely a good response is under each policy."""
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        scorer = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=32,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=16,
                # The default is for wide models: at this width it hardly learns in the few updates that there are.
                initializer_range=32**-0.5,
                bos_token_id=BEGIN,
                eos_token_id=None,
                pad_token_id=PADDING,
            )
        )
        trained(scorer, dialogues(3000, 0.30, rng), epochs=10, learning_rate=5e-3, only_feedback=False)
        prompts = rng.integers(PROMPTS, size=TEST)
        good, bad = responses(prompts, True, rng), responses(prompts, False, rng)
        figures = {
            "response likelihood": accuracy(*(response_logps(scorer, prompts, side) for side in (good, bad))),
            "FLR": accuracy(*(rewards(scorer, prompts, side) for side in (good, bad))),
            "positive follow-ups only": accuracy(*(rewards(scorer, prompts, side, True) for side in (good, bad))),
            "start": good_share(torch.zeros(PROMPTS, WORDS)),
        }
        asked = rng.integers(PROMPTS, size=MINED_PROMPTS)
        written = rng.integers(WORDS, size=(MINED_PROMPTS, SAMPLES, 2))
        figures["DPO with FLR"] = good_share(aligned(scorer, asked, written, rng))
        trained(scorer, dialogues(800, 0.05, rng), epochs=12, learning_rate=1e-3, only_feedback=True)
        figures["fine-tuned FLR"] = accuracy(*(rewards(scorer, prompts, side) for side in (good, bad)))
        figures["DPO with fine-tuned FLR"] = good_share(aligned(scorer, asked, written, rng))
    # The spec asks for a gain of 0.02, or 0.97 outright where there is no room for it.
    figures["to reach"] = min(figures["FLR"] + 0.02, 0.97)
    return figures


def is_good(prompts: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Whether a response `[n, 2]` holds the key word of its prompt, which has the prompt's own number."""
    found: np.ndarray = (words == prompts[:, None]).any(1)
    return found


def responses(prompts: np.ndarray, good: bool, rng: Rng) -> np.ndarray:
    """One good, or one bad, response `[n, 2]` to each prompt."""
    words = rng.integers(WORDS, size=(len(prompts), 2))
    while (wrong := is_good(prompts, words) != good).any():
        words[wrong] = rng.integers(WORDS, size=(int(wrong.sum()), 2))
    return words


def dialogues(count: int, wrong: float, rng: Rng) -> Tensor:
    """Token rows of prompt, response and a follow-up whose polarity is wrong at a given rate."""
    prompts = rng.integers(PROMPTS, size=count)
    words = rng.integers(WORDS, size=(count, 2))
    satisfied = is_good(prompts, words) ^ (rng.random(count) < wrong)
    said = [(POSITIVE if happy else NEGATIVE)[rng.integers(4)] for happy in satisfied]
    return rows(prompts, words, said)


def rows(prompts: np.ndarray, words: np.ndarray, said: Sequence[tuple[int, ...]]) -> Tensor:
    """Token rows of dialogues, padded."""
    longest = max(map(len, said), default=0)
    tokens = np.full((len(prompts), START + longest), PADDING)
    tokens[:, 0], tokens[:, 1] = BEGIN, FIRST_PROMPT + prompts
    tokens[:, 2:START] = FIRST_WORD + words
    for row, own in enumerate(said):
        tokens[row, START : START + len(own)] = [FIRST_SAID + token for token in own]
    return torch.from_numpy(tokens)


def trained(
    scorer: LlamaForCausalLM, tokens: Tensor, *, epochs: int, learning_rate: float, only_feedback: bool
) -> None:
    """Train on dialogues, on all their tokens or on the follow-ups' alone."""
    optimiser = torch.optim.Adam(scorer.parameters(), lr=learning_rate)
    places = torch.arange(1, tokens.shape[1])
    scorer.train()
    for _ in range(epochs):
        for batch in torch.split(tokens[torch.randperm(len(tokens))], 128):
            targets = batch[:, 1:]
            logps = scorer(input_ids=batch[:, :-1]).logits.log_softmax(2).gather(2, targets[..., None]).squeeze(2)
            mask = (targets != PADDING) & (places >= (START if only_feedback else 1))
            optimiser.zero_grad()
            feedback_loss(logps, mask.float()).backward()  # type: ignore[no-untyped-call]  # torch
            optimiser.step()
    scorer.eval()


@torch.no_grad()
def response_logps(scorer: LlamaForCausalLM, prompts: np.ndarray, words: np.ndarray) -> Tensor:
    """Log-probability of each response: what FLR is compared with."""
    tokens = rows(prompts, words, [])
    logits = scorer(input_ids=tokens).logits
    return torch.stack([span_logps(own, row[2:START], 2).sum() for own, row in zip(logits, tokens, strict=True)])


@torch.no_grad()
def rewards(scorer: LlamaForCausalLM, prompts: np.ndarray, words: np.ndarray, positive_only: bool = False) -> Tensor:
    """Follow-up likelihood reward of each response."""
    # Responses are few, dialogues many.
    kinds, place = np.unique(np.column_stack([prompts, words]), axis=0, return_inverse=True)
    sides = []
    for bank in (POSITIVE, NEGATIVE):
        logps = torch.zeros(len(kinds), len(bank), 3)
        mask = torch.zeros(len(kinds), len(bank), 3)
        for number, said in enumerate(bank):
            tokens = rows(kinds[:, 0], kinds[:, 1:], [said] * len(kinds))
            logits = scorer(input_ids=tokens).logits
            for row in range(len(kinds)):
                logps[row, number, : len(said)] = span_logps(logits[row], tokens[row, START:], START)
            mask[:, number, : len(said)] = 1
        sides.append((logps, mask))
    (good, good_mask), (bad, bad_mask) = sides
    found = [
        flr_reward(good[k], good_mask[k], bad[k], bad_mask[k], sides="positive" if positive_only else "both").reward
        for k in range(len(kinds))
    ]
    return torch.stack(found)[torch.from_numpy(place)]


def accuracy(good: Tensor, bad: Tensor) -> float:
    """Share of pairs that are ordered rightly."""
    return pairwise_accuracy(good, bad)


def aligned(scorer: LlamaForCausalLM, prompts: np.ndarray, written: np.ndarray, rng: Rng) -> Tensor:
    """Logits of a policy over words, `[prompts, words]`, after DPO on pairs mined from what a uniform one wrote."""
    count, samples, _ = written.shape
    scored = rewards(scorer, np.repeat(prompts, samples), written.reshape(-1, 2)).reshape(count, samples)
    mined = mine_pairs(scored)
    asked = torch.from_numpy(prompts[mined.prompt])
    chosen, rejected = (torch.from_numpy(written[mined.prompt, side]) for side in (mined.chosen, mined.rejected))
    logits = torch.zeros(PROMPTS, WORDS, requires_grad=True)
    reference = torch.zeros(PROMPTS, WORDS).log_softmax(1)
    for _ in range(10):
        for batch in torch.split(torch.from_numpy(rng.permutation(len(asked))), 32):
            policy = logits.log_softmax(1)
            sides = [
                table[asked[batch, None], side[batch]].sum(1)
                for table in (policy, reference)
                for side in (chosen, rejected)
            ]
            (slope,) = torch.autograd.grad(dpo_loss(*sides, beta=0.1).mean(), logits)
            with torch.no_grad():
                logits -= 2 * slope
    return logits.detach()


def good_share(logits: Tensor) -> float:
    """Probability that a response of two words holds the key word, over prompts."""
    key = logits.softmax(1)[torch.arange(PROMPTS), torch.arange(PROMPTS)]
    return float((1 - (1 - key) ** 2).mean())


def plot(figures: Mapping[str, Interval]) -> Plot:
    """Accuracy of each reward."""
    shown = ("response likelihood", "positive follow-ups only", "FLR", "fine-tuned FLR")
    return bars({name: figures[name] for name in shown}, title="Accuracy of rewards")


CLAIMS = [
    Claim(
        "follow-ups rank at least 0.8 of the pairs rightly, and 0.15 more than the response's own likelihood",
        "FLR",
        "response likelihood",
        lambda ours, own: ours.mean() >= max(0.8, own.mean() + 0.15),
    ),
    Claim(
        "fine-tuning on feedback gains 0.02, or reaches 0.97",
        "fine-tuned FLR",
        "to reach",
        lambda tuned, wanted: tuned.mean() >= wanted.mean(),
    ),
    *(
        Claim(
            f"{policy}: a good response is 0.25 likelier than at the start",
            policy,
            "start",
            lambda after, start: after.mean() >= start.mean() + 0.25,
        )
        for policy in ("DPO with FLR", "DPO with fine-tuned FLR")
    ),
]

RECIPE = Recipe(
    slug="flr",
    title="Likelihood of a user's follow-up as reward",
    year=2024,
    paper="arXiv 2409.13948",
    parts={
        "objective": {"kind": "dpo", "beta": 0.1},
        "reward": {"categories": 6, "reduction": "mean"},
        "candidates": {"samples": 8, "temperature": 0.7, "top_p": 0.9},
    },
    experiment=Experiment(run, CLAIMS, plot, seeds=3, quick_seeds=1),
)
