"""SparsePO: a learned mask finds the tokens that preference hangs on, and the policy moves nowhere else.

Known answer: only the token after a marker matters to the score of a sequence. The mask should be 0 everywhere else,
and the policy should keep to the reference there. Honest limit: DPO stopped early reaches the same reward at the same
divergence; what masks add is that the divergence stays flat from then on.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from prefkit.diagnostics import Interval
from prefkit.objectives import Masked, Objective, PairScores, TokenScores, make_objective, token_terms
from prefkit.recipes.recipe import Claim, Experiment, Figures, Recipe
from prefkit.report.plots import Plot, bars

MARKER, GOOD, BAD, VOCABULARY = 0, 1, 2, 10
BEGIN = VOCABULARY
LENGTH, PAIRS, EPOCHS, BATCH, WIDTH = 12, 300, 30, 32, 32
SAMPLES = 1000
METHODS: Mapping[str, Mapping[str, Any]] = {
    "DPO": {"kind": "dpo", "beta": 0.1},
    "TDPO1": {"kind": "tdpo1", "beta": 0.1},
    "SparsePO": {
        "kind": "sparsepo",
        "beta": 0.1,
        "l1_reward": 0.001,
        "l1_kl": 0.001,
        "mask_learning_rate": 1e-2,
        "mask_weight_decay": 0.01,
        "dropout": 0.0,
    },
}


class Policy(nn.Module):
    """The next token from the last one alone: the contexts are the tokens, so every divergence is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY + 1, WIDTH)
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(2)])
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the next token, and the states of every layer, `[..., layers, width]`."""
        state, states = self.embed(context), []
        for layer in self.layers:
            state = state + torch.tanh(layer(state))
            states.append(state)
        return self.head(state), torch.stack(states, dim=-2)


def run(seed: int) -> Figures:
    """Where masks are, and how far policies move from the reference, in the contexts that matter and in others."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        reference = Policy()
    optimiser = torch.optim.Adam(reference.parameters(), lr=3e-3)
    for _ in range(400):
        tokens = world(64, generator)
        logits, _ = reference(before(tokens))
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        loss.backward()  # type: ignore[no-untyped-call]  # torch's annotation is incomplete
        optimiser.step()
    chosen, rejected = pairs(generator)

    figures: dict[str, float] = {}
    contexts = torch.arange(VOCABULARY + 1)
    others = contexts != MARKER
    for name, config in METHODS.items():
        policy, objective = copy.deepcopy(reference), make_objective(config)
        train(policy, reference, objective, chosen, rejected, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            own, ref = policy(contexts)[0].log_softmax(1), reference(contexts)[0].log_softmax(1)
            figures[f"{name} other KL"] = float((ref.exp() * (ref - own)).sum(1)[others].mean())
            share = own[MARKER].exp()
            figures[f"{name} good share"] = float(share[GOOD] / (share[GOOD] + share[BAD]))
            sampled = sample(policy, torch.Generator().manual_seed(seed))
            steps = before(sampled)
            change = (own - ref)[steps].gather(2, sampled[:, :, None]).squeeze(2)
            figures[f"{name} sequence KL"] = float(change.sum(1).mean())
            figures[f"{name} reward"] = float(score(sampled).double().mean())
            part = getattr(objective, "reward", None)
            if isinstance(part, Masked):
                one = torch.arange(len(contexts))
                given = TokenScores(torch.zeros(len(contexts)), one, layers=reference(contexts)[1])
                mask, _ = part.masks(given, len(contexts))
                figures["mask after marker"] = float(mask[MARKER])
                figures["mask elsewhere"] = float(mask[others].mean())
                figures["sparsity elsewhere"] = 100.0 * float((mask[others] == 0).double().mean())
    figures["wanted sparsity"], figures["wanted share"] = 80.0, 0.98
    return figures


def world(count: int, generator: torch.Generator) -> Int[Tensor, "count length"]:
    """Sequences: after a marker good or bad, else a marker with probability 0.25, else any filler."""
    tokens = torch.empty(count, LENGTH, dtype=torch.long)
    last = torch.full((count,), BEGIN)
    for place in range(LENGTH):
        after = torch.randint(GOOD, BAD + 1, (count,), generator=generator)
        filler = torch.randint(BAD + 1, VOCABULARY, (count,), generator=generator)
        marker = torch.rand(count, generator=generator) < 0.25
        last = torch.where(last == MARKER, after, torch.where(marker, MARKER, filler))
        tokens[:, place] = last
    return tokens


def score(tokens: Int[Tensor, "count length"]) -> Int[Tensor, " count"]:
    """Good tokens less bad ones."""
    return (tokens == GOOD).sum(1) - (tokens == BAD).sum(1)


def before(tokens: Int[Tensor, "count length"]) -> Int[Tensor, "count length"]:
    """The token before each."""
    return torch.cat([torch.full((len(tokens), 1), BEGIN), tokens[:, :-1]], dim=1)


def pairs(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pairs of sequences of different scores, the better one first."""
    first, second = world(4 * PAIRS, generator), world(4 * PAIRS, generator)
    apart = score(first) != score(second)
    first, second = first[apart][:PAIRS], second[apart][:PAIRS]
    better = (score(first) > score(second))[:, None]
    return torch.where(better, first, second), torch.where(better, second, first)


def train(
    policy: Policy,
    reference: Policy,
    objective: Objective[Any],
    chosen: Tensor,
    rejected: Tensor,
    generator: torch.Generator,
) -> None:
    """Learn from the pairs."""
    reward = getattr(objective, "reward", None)
    if isinstance(reward, Masked):
        reward.build(len(reference.layers), WIDTH)  # type: ignore[operator]  # masks that are learned have it
    optimiser = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    for options, weights in objective.weight_groups():
        if weights:
            optimiser.add_param_group({"params": weights, **options})
    for _ in range(EPOCHS):
        for rows in torch.split(torch.randperm(PAIRS, generator=generator), BATCH):
            (better, ref_better), (worse, ref_worse) = (
                scores(policy, reference, side[rows]) for side in (chosen, rejected)
            )
            optimiser.zero_grad()
            losses = objective(
                PairScores(
                    better.total(better.policy_logps, len(rows)),
                    worse.total(worse.policy_logps, len(rows)),
                    ref_better,
                    ref_worse,
                    chosen_tokens=better,
                    rejected_tokens=worse,
                )
            )
            losses.mean().backward()  # type: ignore[no-untyped-call]  # torch's annotation is incomplete
            optimiser.step()


def scores(policy: Policy, reference: Policy, tokens: Int[Tensor, "count length"]) -> tuple[TokenScores, Tensor]:
    """Scores of the tokens of some sequences, and log-probabilities of the sequences under the reference."""
    with torch.no_grad():
        ref_logits, layers = reference(before(tokens))
    logps, ratios, kls = token_terms(policy(before(tokens))[0], ref_logits, tokens)
    ref_logps = (logps - ratios).detach()
    owner = torch.arange(len(tokens)).repeat_interleave(LENGTH)
    found = TokenScores(logps.flatten(), owner, ref_logps.flatten(), kls.flatten(), layers=layers.flatten(0, 1))
    return found, ref_logps.sum(1)


def sample(policy: Policy, generator: torch.Generator) -> Int[Tensor, "samples length"]:
    """Sequences from the policy."""
    last, tokens = torch.full((SAMPLES,), BEGIN), []
    for _ in range(LENGTH):
        last = torch.multinomial(policy(last)[0].softmax(1), 1, generator=generator).squeeze(1)
        tokens.append(last)
    return torch.stack(tokens, dim=1)


def plot(figures: Mapping[str, Interval]) -> Plot:
    """Divergence from the reference of whole sequences, and in contexts that do not matter."""
    shown = {
        f"{name}, {text}": figures[f"{name} {what}"]
        for what, text in (("sequence KL", "sequences"), ("other KL", "contexts without marker"))
        for name in METHODS
    }
    return bars(shown, title="Divergence from the reference after 30 epochs", x="nats")


CLAIMS = [
    Claim(
        "mask after the marker at least 5 times that elsewhere",
        "mask after marker",
        "mask elsewhere",
        lambda after, elsewhere: after.mean() >= 5 * elsewhere.mean(),
    ),
    Claim(
        "at least 80% of the mask elsewhere is 0",
        "sparsity elsewhere",
        "wanted sparsity",
        lambda sparsity, wanted: sparsity.mean() >= wanted.mean(),
    ),
    Claim(
        "good token after the marker with a share of at least 0.98",
        "SparsePO good share",
        "wanted share",
        lambda share, wanted: share.mean() >= wanted.mean(),
    ),
    Claim(
        "divergence of sequences at most 40% of DPO's",
        "SparsePO sequence KL",
        "DPO sequence KL",
        lambda sparse, dpo: sparse.mean() <= 0.4 * dpo.mean(),
    ),
    Claim(
        "divergence in contexts without marker at most 10% of DPO's",
        "SparsePO other KL",
        "DPO other KL",
        lambda sparse, dpo: sparse.mean() <= 0.1 * dpo.mean(),
    ),
]

RECIPE = Recipe(
    slug="sparsepo",
    title="Masks that choose the tokens that preference acts on",
    year=2024,
    paper="arXiv 2410.05102",
    parts={"objective": {"kind": "sparsepo", "beta": 0.1, "l1_reward": 0.001, "l1_kl": 0.001}},
    experiment=Experiment(run, CLAIMS, plot, seeds=3, quick_seeds=1),
)
