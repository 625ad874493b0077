"""Latent labels: whether a label is right is a hidden variable, estimated beside the policy.

Expectation maximisation around any pairwise loss: the loss of a pair and that of the exchanged pair give the odds that
the label is right as the policy sees it; with the reliability of whoever gave the label they give the posterior; the
policy learns from both orders in that proportion, and the posteriors give the reliabilities.

Source: Cao et al. 2025, Latent Collective Preference Optimization (arXiv 2509.24159; renamed Robust Enhanced Policy
Optimization in its third version, whose equations are numbered here).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from prefkit.errors import OptionError
from prefkit.objectives.noise import induced_log_odds
from prefkit.objectives.parts import Part, Stateful, catalogue
from prefkit.options import Options

Update = Literal["ema", "full", "fixed"]
"""When reliabilities change: after every update of the model, after every pass over the data, or never."""

SHOWN_ANNOTATORS = 20
"""With more annotators than this their reliabilities are reported once a run, not in every line of metrics."""


class LatentOptions(Options):
    """Options of `latent`."""

    reliability: float = Field(0.9, ge=0.5, le=1, description="probability that a label is right, to begin with")
    update: Update = Field("ema", description="after each update of the model, each pass over the data, or never")
    ema_alpha: float = Field(0.1, gt=0, le=1, description="weight of the newest batch in the moving reliabilities")
    per_annotator: bool = Field(False, description="one reliability an annotator, whom the data must name")
    clamp: float = Field(1e-4, ge=0, lt=0.5, description="least distance of a reliability from 0 and 1 in posteriors")

    @field_validator("reliability")
    @classmethod
    def _warn(cls, value: float) -> float:
        if value == 1:
            warnings.warn("a reliability of 1 trusts every label; choose one below 1, such as 0.9", stacklevel=2)
        return value

    @model_validator(mode="after")
    def _applies(self) -> Self:
        if "ema_alpha" in self.model_fields_set and self.update != "ema":
            raise ValueError(f"ema_alpha applies only to `update: ema`, not to '{self.update}'")
        return self


def label_confidence(
    log_odds: Float[Tensor, " batch"], reliabilities: Float[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Posterior probability that each label is right, p eta / (p eta + (1 - p) (1 - eta)).

    Args:
        log_odds: log p / (1 - p), p the probability of the labelled order under the policy; see `induced_log_odds`.
        reliabilities: eta of whoever gave each label, in [0, 1].

    Source: eq. 4, as a sigmoid, so that it is exact where p or eta is near its ends.
    """
    return torch.sigmoid(log_odds + torch.logit(reliabilities))


def latent_label_loss(
    losses: Float[Tensor, " batch"], swapped_losses: Float[Tensor, " batch"], confidences: Float[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """-(w log p + (1 - w) log(1 - p)), p the probability of the labelled order that a pairwise loss implies.

    For the logistic link that is the soft-label loss; for others a surrogate: with w = 1 it is -log p, not the loss.

    Args:
        losses: loss of each pair as labelled.
        swapped_losses: loss of each pair with its responses exchanged.
        confidences: w, probability that each label is right; a constant, no gradient flows through it.

    Raises:
        OptionError: the three are not one value a pair each.

    Source: eqs. 2, 5.
    """
    shapes = [tuple(tensor.shape) for tensor in (losses, swapped_losses, confidences)]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1:
        raise OptionError(
            "a pairwise loss must give one value a pair, [batch]; losses, swapped_losses and confidences have the "
            f"shapes {', '.join(map(str, shapes))}"
        )
    log_odds, weights = induced_log_odds(losses, swapped_losses), confidences.detach()
    return -(weights * F.logsigmoid(log_odds) + (1 - weights) * F.logsigmoid(-log_odds))


def tally_labels(
    confidences: Float[Tensor, " batch"], annotators: Int[Tensor, " batch"], count: int
) -> Float[Tensor, "2 annotators"]:
    """Sum of the posteriors of each annotator's labels, and their number.

    Args:
        confidences: see `label_confidence`.
        annotators: who gave each label, from 0.
        count: number of annotators.

    Raises:
        OptionError: an annotator is none of them.
    """
    _check_annotators(annotators, count)
    # A product adds in a fixed order on every device, which index_add does not.
    owners = F.one_hot(annotators, count).to(confidences.dtype)
    return torch.stack([confidences, torch.ones_like(confidences)]) @ owners


def mean_reliabilities(
    tallied: Float[Tensor, "2 annotators"], reliabilities: Float[Tensor, " annotators"]
) -> Float[Tensor, " annotators"]:
    """Mean posterior of each annotator's labels; who gave none keeps the old value.

    Args:
        tallied: see `tally_labels`.
        reliabilities: the old values.

    Source: eq. 6.
    """
    sums, counts = tallied
    return torch.where(counts > 0, sums / counts.clamp(min=1), reliabilities)


def moving_reliabilities(
    tallied: Float[Tensor, "2 annotators"], reliabilities: Float[Tensor, " annotators"], *, ema_alpha: float = 0.1
) -> Float[Tensor, " annotators"]:
    """Old values moved towards the mean posteriors of a batch, (1 - a) eta + a mean; who gave no label keeps theirs.

    Args:
        tallied: of the batch, see `tally_labels`.
        reliabilities: the old values.
        ema_alpha: a, in (0, 1].

    Raises:
        OptionError: `ema_alpha` is out of range.

    Source: eq. 7.
    """
    if not 0 < ema_alpha <= 1:
        raise OptionError(f"ema_alpha must lie in (0, 1], got {ema_alpha}")
    return torch.lerp(reliabilities, mean_reliabilities(tallied, reliabilities), ema_alpha)


def reliability_path(
    probabilities: Float[Tensor, " pairs"], reliability: float, iterations: int
) -> Float[Tensor, " steps"]:
    """Reliabilities that repeated estimation visits while the policy stays as it is, the first one included.

    If the policy is calibrated they approach the true reliability from any start in (0, 1).

    Args:
        probabilities: of the labelled orders under the policy.
        reliability: where to begin.
        iterations: how often to estimate.

    Source: Theorem 4.1.
    """
    log_odds = torch.logit(probabilities)
    path = [torch.as_tensor(reliability, dtype=log_odds.dtype)]
    for _ in range(iterations):
        path.append(label_confidence(log_odds, path[-1].expand_as(log_odds)).mean())
    return torch.stack(path)


class LatentLabels(Stateful):
    """Posterior of every label, and the reliability of all labels together or of each annotator's.

    The posteriors that weigh the loss of an update are those that move the reliabilities after it (Algorithm 1). In
    evaluation mode nothing moves. An annotator who gave no label in training keeps the first reliability.

    Args:
        reliability: see `LatentOptions`, as the others.
        update: when reliabilities change.
        ema_alpha: weight of the newest batch.
        per_annotator: one reliability an annotator.
        clamp: least distance from 0 and 1 in posteriors.

    Attributes:
        reliabilities: `[annotators]`, or `[1]`.
        seen: `[2, annotators]`, sums of posteriors and numbers of labels since the pass over the data began.
        labels: `[annotators]`, numbers of labels since training began.
    """

    row_figures = ("label_confidence",)
    one_way = True
    reliabilities: Tensor
    seen: Tensor
    labels: Tensor
    batch: Tensor

    def __init__(
        self,
        *,
        reliability: float = 0.9,
        update: Update = "ema",
        ema_alpha: float = 0.1,
        per_annotator: bool = False,
        clamp: float = 1e-4,
    ) -> None:
        super().__init__()
        self.reliability, self.update, self.ema_alpha = reliability, update, ema_alpha
        self.per_annotator, self.clamp = per_annotator, clamp
        self.annotators: tuple[str, ...] = ()
        self._allocate(1)

    @property
    def takes(self) -> tuple[str, ...]:
        """Who labelled each pair, where that matters."""
        return ("annotators",) if self.per_annotator else ()

    def prepare(self, annotators: Sequence[str]) -> None:
        """See `Stateful.prepare`."""
        self.annotators = tuple(annotators)
        self._allocate(len(annotators) if self.per_annotator else 1)

    def forward(
        self,
        losses: Float[Tensor, " batch"],
        swapped_losses: Float[Tensor, " batch"],
        annotators: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """The loss of pairs whose labels may be wrong.

        Args:
            losses: loss of each pair as labelled.
            swapped_losses: loss of each pair with its responses exchanged.
            annotators: who labelled each pair; None for all labels together.
        """
        with torch.no_grad():
            if annotators is None:
                annotators = torch.zeros(losses.shape, dtype=torch.long, device=losses.device)
            _check_annotators(annotators, len(self.reliabilities))
            reliabilities = self.reliabilities[annotators]
            log_odds = induced_log_odds(losses, swapped_losses)
            confidences = label_confidence(log_odds, reliabilities.clamp(self.clamp, 1 - self.clamp))
            self.figures = {
                "label_confidence": confidences,
                "label_suspected": (confidences < 0.5).to(confidences.dtype),
                "label_reliability": reliabilities,
                **self._shown(reliabilities),
            }
            if self.training:
                self.batch += tally_labels(confidences, annotators, len(self.reliabilities)).to(self.batch.dtype)
        return latent_label_loss(losses, swapped_losses, confidences)

    def after_update(self, pass_ended: bool) -> None:
        """See `Stateful.after_update`."""
        tallied = self.total(self.batch)
        self.seen += tallied
        self.labels += tallied[1]
        match self.update:
            case "ema":
                moved = moving_reliabilities(tallied, self.reliabilities, ema_alpha=self.ema_alpha)
                self.reliabilities.copy_(moved)
            case "full" if pass_ended:
                self.reliabilities.copy_(mean_reliabilities(self.seen, self.reliabilities))
        self.batch.zero_()
        if pass_ended:
            self.seen.zero_()

    def summary(self) -> dict[str, Any]:
        """The reliabilities, by annotator; those whose labels were only evaluated on are left out."""
        if not self.per_annotator:
            return {"reliability": float(self.reliabilities)}
        found = zip(self.annotators, self.reliabilities.tolist(), self.labels.tolist(), strict=True)
        return {"reliabilities": {name: reliability for name, reliability, labels in found if labels}}

    def _shown(self, like: Tensor) -> dict[str, Tensor]:
        """The reliability of each annotator, once a pair, where they are few."""
        if len(self.annotators) > SHOWN_ANNOTATORS or not self.per_annotator:
            return {}
        return {
            f"label_reliability of {name}": value.expand_as(like)
            for name, value in zip(self.annotators, self.reliabilities, strict=True)
        }

    def _allocate(self, count: int) -> None:
        self.register_buffer("reliabilities", torch.full((count,), self.reliability))
        self.register_buffer("seen", torch.zeros(2, count))
        self.register_buffer("labels", torch.zeros(count))
        # What this process saw since the last update; nothing, whenever a checkpoint is written.
        self.register_buffer("batch", torch.zeros(2, count), persistent=False)


def _check_annotators(annotators: Tensor, count: int) -> None:
    """Refuse annotators that nobody named; on an accelerator, which would have to be waited for, indexing does."""
    if annotators.device.type == "cpu" and annotators.numel():
        low, high = int(annotators.min()), int(annotators.max())
        if low < 0 or high >= count:
            raise OptionError(
                f"annotators must lie in 0..{count - 1}, got {low if low < 0 else high}; objective.prepare(names) says "
                "how many there are"
            )


LATENT = catalogue(Part("latent", LatentLabels, options=LatentOptions))
