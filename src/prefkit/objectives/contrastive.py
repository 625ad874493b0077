"""Contrastive terms: states of a reward model that tell chosen from rejected responses, and one input from another.

Every input is seen twice, with different dropout. The two views of one input are to be alike and those of different
inputs are not (SimCSE), or both are to be assigned to the same cluster (SwAV).

Source: Wang et al. 2024, Secrets of RLHF in Large Language Models Part II (arXiv 2401.06080), section 3.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, FiniteFloat
from torch import Tensor, nn

from prefkit.errors import OptionError, unknown
from prefkit.objectives.parts import Part, Stateful
from prefkit.objectives.scorer import HasStates
from prefkit.options import Options

View = Literal["pair", "difference"]
"""The inputs of a contrastive term: the states of both responses, or their differences in both directions."""


def contrastive_inputs(
    chosen: Float[Tensor, "batch dim"], rejected: Float[Tensor, "batch dim"], view: View = "pair"
) -> Float[Tensor, "inputs dim"]:
    """Inputs of a contrastive term, `[2 batch, dim]`.

    Args:
        chosen: last hidden states of the chosen responses.
        rejected: those of the rejected responses.
        view: "pair" takes [chosen; rejected], "difference" [chosen - rejected; rejected - chosen].

    Raises:
        OptionError: the view is unknown, or shapes differ.
    """
    if chosen.shape != rejected.shape:
        raise OptionError(f"both sides need states of one shape, got {tuple(chosen.shape)}, {tuple(rejected.shape)}")
    match view:
        case "pair":
            return torch.cat([chosen, rejected])
        case "difference":
            return torch.cat([chosen - rejected, rejected - chosen])
    raise OptionError(unknown("view", view, ("pair", "difference")))


def simcse_loss(
    view_s: Float[Tensor, "inputs dim"], view_t: Float[Tensor, "inputs dim"], *, tau: float = 0.05
) -> Float[Tensor, " inputs"]:
    """-log softmax over j of cos(s_i, t_j) / tau, at j = i: each view has to find its twin among all inputs.

    Args:
        view_s: one view of each input.
        view_t: the other one, in the same order.
        tau: temperature, above 0.

    Raises:
        OptionError: tau is not positive, or shapes differ.

    Source: Gao et al. 2021 (SimCSE, arXiv 2104.08821), eq. 1.
    """
    _check(view_s, view_t, tau=tau)
    similarities = F.normalize(view_s, dim=1) @ F.normalize(view_t, dim=1).T / tau
    return -similarities.log_softmax(1).diagonal()


class SwavLoss(NamedTuple):
    """Loss of each input, and the codes of both views, which have no gradient."""

    losses: Float[Tensor, " inputs"]
    codes_s: Float[Tensor, "inputs clusters"]
    codes_t: Float[Tensor, "inputs clusters"]


def swav_loss(
    view_s: Float[Tensor, "inputs dim"],
    view_t: Float[Tensor, "inputs dim"],
    centres: Float[Tensor, "clusters dim"],
    *,
    tau: float = 0.1,
    epsilon: float = 0.05,
    iterations: int = 3,
) -> SwavLoss:
    """Swapped prediction: each view predicts the cluster of the other one.

    Args:
        view_s: one view of each input.
        view_t: the other one, in the same order.
        centres: of the clusters, taken at unit length. A balanced assignment needs as many inputs as clusters.
        tau: temperature of the predictions, above 0.
        epsilon: of the codes, see `sinkhorn_codes`.
        iterations: of the codes.

    Raises:
        OptionError: tau, epsilon or iterations is out of range, or shapes differ.

    Source: Caron et al. 2020 (SwAV, arXiv 2006.09882), eq. 2.
    """
    _check(view_s, view_t, tau=tau)
    if centres.ndim != 2 or centres.shape[1] != view_s.shape[1]:
        raise OptionError(f"centres must be as wide as the views, {view_s.shape[1]}, got {tuple(centres.shape)}")
    units = F.normalize(centres, dim=1)
    scores_s, scores_t = F.normalize(view_s, dim=1) @ units.T, F.normalize(view_t, dim=1) @ units.T
    codes_s, codes_t = (
        sinkhorn_codes(scores, epsilon=epsilon, iterations=iterations) for scores in (scores_s, scores_t)
    )
    logps_s, logps_t = (scores_s / tau).log_softmax(1), (scores_t / tau).log_softmax(1)
    return SwavLoss(-(codes_s * logps_t).sum(1) - (codes_t * logps_s).sum(1), codes_s, codes_t)


def sinkhorn_codes(
    scores: Float[Tensor, "inputs clusters"], *, epsilon: float = 0.05, iterations: int = 3
) -> Float[Tensor, "inputs clusters"]:
    """Soft assignment of inputs to clusters that uses all clusters about equally; rows sum to 1, no gradient.

    Args:
        scores: similarity of each input to each cluster.
        epsilon: above 0; the smaller, the harder the assignment.
        iterations: rounds of Sinkhorn's algorithm (first clusters, then inputs), at least 1.

    Raises:
        OptionError: epsilon or iterations is out of range.

    Source: Caron et al. 2020 (SwAV, arXiv 2006.09882), section 3.1.
    """
    if not epsilon > 0 or iterations < 1:
        raise OptionError(f"epsilon must be above 0 and iterations at least 1, got {epsilon} and {iterations}")
    # In logarithms, so that no row or column can vanish.
    codes = scores.detach() / epsilon
    for _ in range(iterations):
        codes = codes.log_softmax(0).log_softmax(1)
    return codes.exp()


class ContrastiveOptions(Options):
    """Options of `contrastive`."""

    term: Literal["simcse", "swav"] = Field("simcse", description="find the twin among all inputs, or its cluster")
    view: View = Field("pair", description="inputs: both responses, or their differences")
    contrastive_weight: FiniteFloat = Field(0.1, ge=0, description="weight of the term; the report's is not known")
    tau: FiniteFloat | None = Field(None, gt=0, description="temperature; 0.05 for simcse and 0.1 for swav by default")
    clusters: int = Field(16, ge=2, description="clusters of swav; a batch should have at least half as many pairs")
    epsilon: FiniteFloat = Field(0.05, gt=0, description="of the codes of swav")
    iterations: int = Field(3, ge=1, description="rounds of Sinkhorn's algorithm")
    seed: int = Field(0, description="of the first centres of swav")


class Contrastive(Stateful):
    """The auxiliary term of a reward model: a contrastive loss of its last hidden states, a mean over a pair's inputs.

    The two views need dropout: that of the model (`model.dropout`) or of an adapter (`model.lora.dropout`). The
    negatives are the other inputs of the batch of one process and one step.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = ContrastiveOptions.parse(options, "contrastive")
        self.centres: nn.Parameter | None = None

    def equip(self, scorer: object) -> None:
        """See `Stateful.equip`."""
        if isinstance(scorer, nn.Module) and not any(map(has_dropout, scorer.modules())):
            raise OptionError(
                "auxiliary 'contrastive' compares two passes with different dropout, and this model has none: set "
                "model.dropout=true for a model that has some, or model.lora with a dropout"
            )
        if not isinstance(scorer, HasStates):
            raise OptionError(f"auxiliary 'contrastive' reads states, which {type(scorer).__name__} does not have")
        self.build(scorer.width)

    def build(self, width: int) -> None:
        """Make the centres of the clusters.

        Args:
            width: size of the hidden states.
        """
        if self.options.term == "swav":
            generator = torch.Generator().manual_seed(self.options.seed)
            drawn = torch.randn(self.options.clusters, width, generator=generator)
            self.centres = nn.Parameter(F.normalize(drawn, dim=1))

    def after_update(self, pass_ended: bool) -> None:
        """See `Stateful.after_update`: centres go back to unit length."""
        if self.centres is not None:
            with torch.no_grad():
                self.centres.copy_(F.normalize(self.centres, dim=1))

    def forward(
        self, chosen: Float[Tensor, "pairs 2 dim"], rejected: Float[Tensor, "pairs 2 dim"]
    ) -> Float[Tensor, " pairs"]:
        """The term of each pair.

        Raises:
            OptionError: the centres have not been made.
        """
        options = self.options
        s, t = (
            contrastive_inputs(mine, other, options.view)
            for mine, other in zip(chosen.unbind(1), rejected.unbind(1), strict=True)
        )
        if options.term == "simcse":
            losses = simcse_loss(s, t, tau=options.tau or 0.05)
        elif self.centres is None:
            raise OptionError("auxiliary 'contrastive' has no centres yet: fit makes them, or build(width)")
        else:
            how: dict[str, Any] = {"epsilon": options.epsilon, "iterations": options.iterations}
            losses = swav_loss(s, t, self.centres, tau=options.tau or 0.1, **how).losses
        term = options.contrastive_weight * (losses[: len(chosen)] + losses[len(chosen) :]) / 2
        self.figures = {"contrastive_loss": term.detach()}
        return term


def has_dropout(module: nn.Module) -> bool:
    """Whether a module, without those inside it, drops something in training."""
    if isinstance(module, nn.Dropout):
        return module.p > 0
    rates = (getattr(module, name, None) for name in ("attention_dropout", "dropout"))
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


CONTRASTIVE = Part("contrastive", Contrastive, ("chosen_views", "rejected_views"), ContrastiveOptions)


def _check(view_s: Tensor, view_t: Tensor, *, tau: float) -> None:
    if not tau > 0:
        raise OptionError(f"tau must be greater than 0, got {tau}")
    if view_s.ndim != 2 or view_s.shape != view_t.shape:
        raise OptionError(f"two views of the same inputs are needed, got {tuple(view_s.shape)}, {tuple(view_t.shape)}")
