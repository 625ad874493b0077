"""DOVE, later JPO: comparisons of responses to different instructions teach a policy, and so do their instructions.

A policy over instructions and responses, pi(I) pi(R | I), in tables, so that its expected reward is a sum. Comparisons
across instructions are many, those within one are few: what do they add, and what is lost when the instruction's own
probability is left out of the loss?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prefkit.diagnostics import Interval
from prefkit.objectives import dpo_loss, jpo_loss_decomposed
from prefkit.recipes.recipe import Claim, Experiment, Figures, Recipe
from prefkit.report.plots import Plot, bars

INSTRUCTIONS, RESPONSES = 30, 8
CONDITIONAL, JOINT = 150, 1500
BETA, LEARNING_RATE, STEPS = 0.5, 0.1, 300


def run(seed: int) -> Figures:
    """Expected reward over instructions of each way to use each set of comparisons."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    reference = (0.3 * normal(INSTRUCTIONS), 0.5 * normal(INSTRUCTIONS, RESPONSES))
    reward = normal(INSTRUCTIONS, RESPONSES) + normal(INSTRUCTIONS, 1)
    within, across = pairs(reward, CONDITIONAL, False, generator), pairs(reward, JOINT, True, generator)
    both = torch.cat([within, across])

    def trained(comparisons: Tensor, *, prompts: bool) -> float:
        return expected_reward(fit(reference, comparisons, prompts), reward)

    return {
        "reference": expected_reward(reference[1], reward),
        "best": reward.max(1).values.mean().item(),
        "DPO, conditional": trained(within, prompts=False),
        "JPO, conditional": trained(within, prompts=True),
        "JPO, joint": trained(across, prompts=True),
        "instructions left out, joint": trained(across, prompts=False),
        "JPO, both": trained(both, prompts=True),
        "instructions left out, both": trained(both, prompts=False),
    }


def pairs(reward: Tensor, count: int, across: bool, generator: torch.Generator) -> Tensor:
    """Bradley-Terry choices, `[count, 2, 2]`: (chosen, rejected) x (instruction, response).

    Args:
        reward: `[instructions, responses]`.
        count: number of choices.
        across: between different instructions, instead of within one.
        generator: source of randomness.
    """

    def some(bound: int) -> Tensor:
        return torch.randint(bound, (count,), generator=generator)

    first = some(INSTRUCTIONS)
    second = (first + 1 + some(INSTRUCTIONS - 1)) % INSTRUCTIONS if across else first
    left, right = some(RESPONSES), some(RESPONSES)
    if not across:
        right = (left + 1 + some(RESPONSES - 1)) % RESPONSES
    wins = torch.rand(count, generator=generator, dtype=torch.float64) < torch.sigmoid(
        reward[first, left] - reward[second, right]
    )
    sides = torch.stack([torch.stack([first, left], 1), torch.stack([second, right], 1)], 1)
    return torch.where(wins[:, None, None], sides, sides.flip(1))


def fit(reference: Sequence[Tensor], comparisons: Tensor, prompts: bool) -> Tensor:
    """Logits of the responses after training.

    Args:
        reference: logits of instructions and of responses, from which the policy starts.
        comparisons: see `pairs`.
        prompts: score the instructions with the responses (JPO), or the responses alone (DPO).
    """
    policy = [logits.clone().requires_grad_() for logits in reference]
    optimiser = torch.optim.Adam(policy, lr=LEARNING_RATE)
    frozen = logps(reference, comparisons)
    for _ in range(STEPS):
        optimiser.zero_grad()
        losses(logps(policy, comparisons), frozen, prompts).mean().backward()  # type: ignore[no-untyped-call]  # torch
        optimiser.step()
    return policy[1].detach()


def losses(policy: Tensor, frozen: Tensor, prompts: bool) -> Tensor:
    """JPO or DPO of log-probabilities as `logps` gives them, `[count]`.

    JPO takes responses and instructions apart: where the instructions are equal, theirs cancel exactly. Summed first,
    they would leave rounding, which Adam blows up where a gradient is zero by symmetry.
    """
    responses = (*policy[1].unbind(1), *frozen[1].unbind(1))
    if not prompts:
        return dpo_loss(*responses, beta=BETA)
    return jpo_loss_decomposed(*responses, *policy[0].unbind(1), *frozen[0].unbind(1), beta=BETA).losses


def logps(logits: Sequence[Tensor], comparisons: Tensor) -> Tensor:
    """log pi(I) and log pi(R | I) of both sides, `[2, count, 2]`."""
    instructions, responses = comparisons.unbind(2)
    return torch.stack([logits[0].log_softmax(0)[instructions], logits[1].log_softmax(1)[instructions, responses]])


def expected_reward(responses: Tensor, reward: Tensor) -> float:
    """Mean over the instructions of the expected reward of the response."""
    return float((responses.softmax(1) * reward).sum(1).mean())


def plot(figures: Mapping[str, Interval]) -> Plot:
    """Expected reward of each policy."""
    return bars(dict(figures), title="Expected reward of the responses")


def _ahead(ours: Any, theirs: Any) -> bool:
    return bool(((ours - theirs) >= 0.25).all())


CLAIMS = [
    Claim(
        "JPO on both kinds is ahead of DPO on conditional pairs by 0.25 on every seed",
        "JPO, both",
        "DPO, conditional",
        _ahead,
    ),
    Claim(
        "on joint pairs, JPO is ahead of leaving out the instructions on 80% of seeds",
        "JPO, joint",
        "instructions left out, joint",
        lambda ours, theirs: (ours > theirs).mean() >= 0.8,
    ),
    Claim(
        "on conditional pairs, JPO is DPO to 1e-9",
        "JPO, conditional",
        "DPO, conditional",
        lambda ours, theirs: bool((abs(ours - theirs) <= 1e-9).all()),
    ),
]

RECIPE = Recipe(
    slug="dove",
    title="Joint preferences over instruction and response",
    year=2024,
    paper="arXiv 2404.00530",
    parts={"objective": {"kind": "jpo", "beta": 0.1}, "data": {"format": "joint"}},
    experiment=Experiment(run, CLAIMS, plot, quick_seeds=3),
)
