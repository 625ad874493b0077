import math
from decimal import Decimal, getcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefkit.objectives import log_odds, log_ratio
from prefkit.objectives.links import LINKS

OF_MARGIN = [name for name, part in LINKS.items() if not part.takes]
MARGINS = [-1000.0, -50.0, -3.0, 0.0, 0.5, 50.0, 1000.0]

# Second implementations on Python's floats.
BY_HAND = {
    "logistic": lambda h, beta: math.log1p(math.exp(-beta * h)),
    "hinge": lambda h, beta: max(0.0, 1 - beta * h),
    "squared": lambda h, beta: (h - 0.5 / beta) ** 2,
    "probit": lambda h, beta: -math.log(math.erfc(-beta * h / math.sqrt(2)) / 2),
    "weighted_logistic": lambda h, beta: beta * math.log1p(math.exp(-h)),
    "exo": lambda h, beta: divergence(1 / (1 + math.exp(-beta * h)), 1 / (1 + math.exp(beta * h))),
    "discopop": lambda h, beta: blend(beta * h, 1 / (1 + math.exp(-max(beta * h / 0.05, -600)))),
}


def divergence(q: float, other: float) -> float:
    return q * math.log(q / 0.999) + other * math.log(other / 0.001)


def blend(x: float, share: float) -> float:
    return (1 - share) * math.log1p(math.exp(-x)) + share * math.exp(-x)


def test_every_link_has_a_second_implementation() -> None:
    assert set(BY_HAND) == set(OF_MARGIN)


@pytest.mark.parametrize("name", OF_MARGIN)
@given(margin=st.floats(-20, 20), beta=st.floats(0.01, 1.5))
def test_link_agrees_with_arithmetic_by_hand(name: str, margin: float, beta: float) -> None:
    value = LINKS[name].function(torch.tensor([margin], dtype=torch.float64), beta=beta)
    assert value.item() == pytest.approx(BY_HAND[name](margin, beta), rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("name", OF_MARGIN)
def test_link_and_its_slope_stay_finite_in_float32(name: str) -> None:
    margin = torch.tensor(MARGINS, requires_grad=True)
    losses = LINKS[name].function(margin, beta=1.0)
    (slope,) = torch.autograd.grad(losses.sum(), margin)
    assert losses.isfinite().all()
    assert slope.isfinite().all()
    # Far on the wrong side each still pulls the margin up, but for EXO, which by then holds the label for wrong.
    assert slope[0] < 0 or name == "exo"


@pytest.mark.parametrize("name", OF_MARGIN)
def test_link_passes_gradcheck(name: str) -> None:
    margin = torch.tensor([-4.0, -0.3, 0.7, 3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h: LINKS[name].function(h, beta=0.7), (margin,))


def test_probit_tail_follows_the_asymptotic_series() -> None:
    # -log Phi(-x) = x^2/2 + log(x sqrt(2 pi)) - log(1 - 1/x^2 + 3/x^4 - ...)
    x = 40.0
    series = x**2 / 2 + math.log(x * math.sqrt(2 * math.pi)) - math.log(1 - x**-2 + 3 * x**-4)
    value = LINKS["probit"].function(torch.tensor([-x], dtype=torch.float64), beta=1.0)
    assert value.item() == pytest.approx(series, rel=1e-9)


def divergence_margin_by_hand(kind: str, chosen: torch.Tensor, rejected: torch.Tensor, alpha: float) -> torch.Tensor:
    """As in TRL 1.16: f' without the constants, which cancel in the margin."""
    match kind:
        case "reverse_kl":
            return chosen - rejected
        case "forward_kl":
            return -torch.exp(-chosen) + torch.exp(-rejected)
        case "jensen_shannon":
            return torch.log(torch.sigmoid(chosen)) - torch.log(torch.sigmoid(rejected))
        case _:
            return (torch.exp((alpha - 1) * chosen) - torch.exp((alpha - 1) * rejected)) / (alpha - 1)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.9, 2.0])
@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "jensen_shannon", "alpha"])
def test_divergences_agree_with_trl(kind: str, alpha: float) -> None:
    chosen, rejected = torch.linspace(-6, 6, 41, dtype=torch.float64), torch.linspace(4, -5, 41, dtype=torch.float64)
    zero = torch.zeros_like(chosen)
    ours = [log_ratio(ratio, zero, divergence=kind, divergence_alpha=alpha) for ratio in (chosen, rejected)]
    expected = divergence_margin_by_hand(kind, chosen, rejected, alpha)
    torch.testing.assert_close(ours[0] - ours[1], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "jensen_shannon", "alpha"])
def test_divergence_is_zero_at_the_reference_increasing_and_finite(kind: str) -> None:
    policy = torch.tensor([-1000.0, -50.0, 0.0, 50.0, 1000.0], requires_grad=True)
    reward = log_ratio(policy, torch.zeros(5), divergence=kind)
    (slope,) = torch.autograd.grad(reward.sum(), policy)
    assert abs(reward[2].item()) < 1e-6
    assert (reward.diff() >= 0).all()
    assert reward.isfinite().all()
    assert slope.isfinite().all()
    assert (slope >= 0).all()


def test_alpha_divergence_meets_its_limits() -> None:
    ratio, zero = torch.linspace(-3, 3, 13, dtype=torch.float64), torch.zeros(13, dtype=torch.float64)
    forward = log_ratio(ratio, zero, divergence="alpha", divergence_alpha=0.0)
    torch.testing.assert_close(forward, 1 - torch.exp(-ratio))
    near_one = log_ratio(ratio, zero, divergence="alpha", divergence_alpha=1 + 1e-5)
    torch.testing.assert_close(near_one, ratio, rtol=1e-4, atol=0)
    torch.testing.assert_close(log_ratio(ratio, zero, divergence="alpha", divergence_alpha=1.0), ratio)


@pytest.mark.parametrize("mean", ["-1e-3", "-0.2", "-0.6931471805599453", "-3", "-40"])
def test_log_odds_agree_with_decimal_arithmetic(mean: str) -> None:
    getcontext().prec = 50
    probability = Decimal(mean).exp()
    expected = (probability / (1 - probability)).ln()
    value = log_odds(torch.tensor([7 * float(mean)], dtype=torch.float64), torch.tensor([7]))
    assert value.item() == pytest.approx(float(expected), rel=1e-9, abs=1e-9)


def test_log_odds_of_certain_and_impossible_responses_are_finite() -> None:
    logps = torch.tensor([0.0, -1e-9, -1e4], requires_grad=True)
    odds = log_odds(logps, torch.tensor([3, 3, 3]))
    (slope,) = torch.autograd.grad(odds.sum(), logps)
    assert odds.isfinite().all()
    assert slope.isfinite().all()
    assert odds[0] > odds[2]
