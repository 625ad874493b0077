"""Choice laws: from the margin between two options to the probabilities of a win, a tie and a loss.

The margin is the strength of the first option less that of the second, in log-odds. Each law gives the negative
log-likelihood of weighted outcomes with its first and second derivatives, and may have one parameter of its own, of
ties. All are convex in margin and parameter together, so that a fit has one optimum.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Protocol

import numpy as np
from scipy.special import expit, log_expit, log_ndtr

from prefkit.preference.inputs import Floats


class Terms(NamedTuple):
    """A negative log-likelihood and its derivatives in the margins m and the parameter of ties t.

    Args:
        value: summed over rows.
        margin: `[n]`, d/dm.
        tie: d/dt, summed.
        margin2: `[n]`, d2/dm2.
        cross: `[n]`, d2/dm dt.
        tie2: d2/dt2, summed.
    """

    value: float
    margin: Floats
    tie: float
    margin2: Floats
    cross: Floats
    tie2: float


class Law(Protocol):
    """A choice law.

    Attributes:
        ties: whether a tie is an outcome of its own, with a parameter that is fitted; otherwise a tie is half a win.
        start: the parameter before fitting.
    """

    ties: ClassVar[bool]
    start: ClassVar[float]

    def terms(self, margins: Floats, tie: float, weights: Floats) -> Terms:
        """Negative log-likelihood of outcomes.

        Args:
            margins: `[n]`.
            tie: the parameter of ties.
            weights: `[n, 3]`, weight of a win, a tie and a loss of the first option.
        """

    def log_probabilities(self, margins: Floats, tie: float) -> Floats:
        """`[n, 2]` (loss, win) or `[n, 3]` (loss, tie, win) of the first option."""


class BradleyTerryLaw:
    """P(win) = sigmoid(m).

    Source: Bradley and Terry 1952, Rank analysis of incomplete block designs.
    """

    ties: ClassVar[bool] = False
    start: ClassVar[float] = 0.0

    def terms(self, margins: Floats, tie: float, weights: Floats) -> Terms:
        """See `Law`."""
        win, loss = weights[:, 0], weights[:, 2]
        # One exponential for everything: this is where most of the time of a large fit goes.
        small = np.exp(-np.abs(margins))
        larger = 1 / (1 + small)
        smaller = small * larger
        ahead = margins >= 0
        up, down = np.where(ahead, larger, smaller), np.where(ahead, smaller, larger)
        total = win + loss
        value = float(total @ np.log1p(small) + win @ np.maximum(-margins, 0) + loss @ np.maximum(margins, 0))
        return Terms(value, loss * up - win * down, 0.0, total * larger * smaller, np.zeros_like(margins), 0.0)

    def log_probabilities(self, margins: Floats, tie: float) -> Floats:
        """See `Law`."""
        return np.stack([log_expit(-margins), log_expit(margins)], axis=1)


class ThurstoneLaw:
    """P(win) = Phi(m), Phi the normal distribution function: utilities whose difference has standard deviation 1.

    Source: Thurstone 1927, A law of comparative judgment, case V.
    """

    ties: ClassVar[bool] = False
    start: ClassVar[float] = 0.0

    def terms(self, margins: Floats, tie: float, weights: Floats) -> Terms:
        """See `Law`."""
        win, loss = weights[:, 0], weights[:, 2]
        above, below = log_ndtr(margins), log_ndtr(-margins)
        density = -0.5 * margins**2 - 0.5 * np.log(2 * np.pi)
        # Inverse Mills ratios, whose exponents stay moderate where the densities underflow.
        up, down = np.exp(density - above), np.exp(density - below)
        return Terms(
            -(win @ above) - loss @ below,
            loss * down - win * up,
            0.0,
            win * up * (up + margins) + loss * down * (down - margins),
            np.zeros_like(margins),
            0.0,
        )

    def log_probabilities(self, margins: Floats, tie: float) -> Floats:
        """See `Law`."""
        return np.stack([log_ndtr(-margins), log_ndtr(margins)], axis=1)


class RaoKupperLaw:
    """P(win) = sigmoid(m - t), P(loss) = sigmoid(-m - t), a tie otherwise: what is within a threshold t >= 0 ties.

    The paper's theta is exp(t).

    Source: Rao and Kupper 1967, Ties in paired-comparison experiments.
    """

    ties: ClassVar[bool] = True
    start: ClassVar[float] = 0.5

    def terms(self, margins: Floats, tie: float, weights: Floats) -> Terms:
        """See `Law`."""
        if not tie > 0:
            nothing = np.zeros_like(margins)
            return Terms(np.inf, nothing, 0.0, nothing, nothing, 0.0)
        win, both, loss = weights.T
        ahead, behind = win + both, loss + both
        up, down = margins - tie, -margins - tie
        miss_up, miss_down = expit(-up), expit(-down)
        curve_up, curve_down = ahead * expit(up) * miss_up, behind * expit(down) * miss_down
        ties = both.sum()
        value = -(ahead @ log_expit(up)) - behind @ log_expit(down) - ties * np.log(np.expm1(2 * tie))
        return Terms(
            value,
            behind * miss_down - ahead * miss_up,
            float((ahead * miss_up + behind * miss_down).sum() + ties * 2 / np.expm1(-2 * tie)),
            curve_up + curve_down,
            curve_down - curve_up,
            float((curve_up + curve_down).sum() + ties / np.sinh(tie) ** 2),
        )

    def log_probabilities(self, margins: Floats, tie: float) -> Floats:
        """See `Law`."""
        win, loss = log_expit(margins - tie), log_expit(-margins - tie)
        with np.errstate(divide="ignore"):
            between = np.log(np.expm1(2 * tie)) + win + loss
        return np.stack([loss, between, win], axis=1)


class DavidsonLaw:
    """P(win) : P(tie) : P(loss) = exp(m / 2) : exp(t) : exp(-m / 2): ties at the geometric mean of both strengths.

    The paper's nu is exp(t).

    Source: Davidson 1970, On extending the Bradley-Terry model to accommodate ties.
    """

    ties: ClassVar[bool] = True
    start: ClassVar[float] = 0.0

    def terms(self, margins: Floats, tie: float, weights: Floats) -> Terms:
        """See `Law`."""
        log_p = self.log_probabilities(margins, tie)
        loss_p, tie_p, win_p = np.exp(log_p).T
        total, lead = weights.sum(axis=1), win_p - loss_p
        return Terms(
            -float((weights * log_p[:, ::-1]).sum()),
            total * lead / 2 - (weights[:, 0] - weights[:, 2]) / 2,
            float((total * tie_p).sum() - weights[:, 1].sum()),
            total * (win_p + loss_p - lead**2) / 4,
            -total * tie_p * lead / 2,
            float((total * tie_p * (1 - tie_p)).sum()),
        )

    def log_probabilities(self, margins: Floats, tie: float) -> Floats:
        """See `Law`."""
        logits = np.stack([-margins / 2, np.full_like(margins, tie), margins / 2], axis=1)
        found: Floats = logits - np.logaddexp.reduce(logits, axis=1)[:, None]
        return found
