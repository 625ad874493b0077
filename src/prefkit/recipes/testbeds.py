"""Testbeds: small worlds in which the right answer is known, for the experiments of recipes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prefkit.objectives import PairScores


@dataclass(frozen=True)
class LogLinearBandit:
    """Actions with normal features, a reward linear in them, policies pi(a) ~ exp(theta . phi(a)), uniform reference.

    With beta = 1 the policy that maximises reward less the divergence from the reference has the reward's own
    parameters, so both the scale and the direction of what was learned can be compared with the truth.

    Args:
        theta: `[d]`, parameters of the reward and of the optimal policy.
        actions: `[prompts, k, d]`, features of the actions on which policies are compared.
    """

    theta: Float[Tensor, " d"]
    actions: Float[Tensor, "prompts k d"]

    @classmethod
    def sample(
        cls, generator: torch.Generator, *, d: int = 8, norm: float = 2.5, prompts: int = 500, k: int = 10
    ) -> Self:
        """A world with parameters of a given norm in a random direction."""
        direction = torch.randn(d, generator=generator, dtype=torch.float64)
        actions = torch.randn(prompts, k, d, generator=generator, dtype=torch.float64)
        return cls(norm * direction / direction.norm(), actions)

    def pairs(
        self, n: int, flip_rate: float | Float[Tensor, " n"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        """Features of chosen and rejected actions: a Bradley-Terry choice, reported wrongly at the flip rate, which
        may be one a pair."""
        first, second = torch.randn(2, n, len(self.theta), generator=generator, dtype=torch.float64)
        first_wins = torch.sigmoid((first - second) @ self.theta)
        wins = torch.rand(n, generator=generator, dtype=torch.float64) < first_wins
        flips = torch.rand(n, generator=generator, dtype=torch.float64) < flip_rate
        wins = (wins ^ flips).unsqueeze(1)
        return torch.where(wins, first, second), torch.where(wins, second, first)

    def accuracy(self, theta: Float[Tensor, " d"]) -> float:
        """Share of prompts whose first two actions these parameters order as the true reward does."""
        margin = self.actions[:, 0] - self.actions[:, 1]
        return float(((margin @ theta > 0) == (margin @ self.theta > 0)).double().mean())

    def expected_reward(self, theta: Float[Tensor, " d"]) -> float:
        """Mean true reward of the policy with these parameters."""
        choices = torch.softmax(self.actions @ theta, dim=1)
        return float((choices * (self.actions @ self.theta)).sum(1).mean())


def log_linear_scores(
    theta: Float[Tensor, " d"], chosen: Float[Tensor, "n d"], rejected: Float[Tensor, "n d"]
) -> PairScores:
    """Scores of pairs of actions under a log-linear policy, whose normaliser is the same for both and left out."""
    reference = torch.zeros(len(chosen), dtype=theta.dtype)
    return PairScores(chosen @ theta, rejected @ theta, reference, reference)


def bradley_terry(
    first: Int[Tensor, " n"], second: Int[Tensor, " n"], reward: Float[Tensor, " k"], generator: torch.Generator
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Chosen and rejected of each two responses, given by their places in a table of rewards."""
    first_wins = torch.sigmoid(reward[first] - reward[second])
    wins = torch.rand(len(first), generator=generator, dtype=torch.float64) < first_wins
    return torch.where(wins, first, second), torch.where(wins, second, first)


def minimise(
    loss: Callable[[Float[Tensor, " d"]], Float[Tensor, ""]],
    d: int,
    iterations: int = 200,
    tolerance: float | None = None,
) -> Float[Tensor, " d"]:
    """Minimiser of a smooth function of d parameters, by L-BFGS from 0 with a strong Wolfe line search.

    Args:
        loss: the function.
        d: number of parameters.
        iterations: at most.
        tolerance: of gradient and change, where torch's own (1e-7 and 1e-9) are too wide.
    """
    theta = torch.zeros(d, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [theta],
        max_iter=iterations,
        tolerance_grad=tolerance or 1e-7,
        tolerance_change=tolerance or 1e-9,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        optimiser.zero_grad()
        value = loss(theta)
        value.backward()  # type: ignore[no-untyped-call]  # torch's annotation is incomplete
        return value.item()

    optimiser.step(closure)  # type: ignore[no-untyped-call]  # torch's annotation is incomplete
    return theta.detach()


def descend(
    parameters: Iterable[Tensor],
    loss: Callable[[], Float[Tensor, ""]],
    *,
    steps: int,
    learning_rate: float,
    weight_decay: float = 0.0,
) -> Iterator[int]:
    """Minimise a loss with AdamW.

    Args:
        parameters: changed in place.
        loss: computes the loss from them anew.
        steps: updates.
        learning_rate: of AdamW.
        weight_decay: of AdamW; without it this is Adam.

    Yields:
        The number of each update once it is made, from 1.
    """
    optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    for step in range(1, steps + 1):
        optimiser.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]  # torch's annotation is incomplete
        optimiser.step()
        yield step
