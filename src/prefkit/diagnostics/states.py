"""States: what diagnostics read of a model's hidden states, from the same pass that scores responses.

A prompt is processed once for all its responses, as in training; of the states only their sums are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prefkit.comparisons import Comparison, Pair, pairs
from prefkit.diagnostics.displacement import ches_from_sums
from prefkit.errors import OptionError, PrefkitError, RecordError
from prefkit.objectives import Encoded, Scorer

NEEDS = frozenset({"tokens", "predictors"})
"""What a scorer has to give."""


@dataclass(frozen=True)
class ResponseStates:
    """Scores of responses with the sums of their hidden states, on the CPU.

    Args:
        logps: log-probability of each response (nats).
        lengths: its tokens.
        sums: sum of the last hidden states that predict its tokens.
    """

    logps: Float[Tensor, " responses"]
    lengths: Int[Tensor, " responses"]
    sums: Float[Tensor, "responses dim"]


def score_states(
    scorer: Scorer, encoded: Iterable[Encoded], *, batch_size: int = 8, reference: bool = False
) -> Iterator[ResponseStates]:
    """Score comparisons without gradients, a batch at a time, with the sums of their hidden states.

    The scorer must have been told to `provide` what `NEEDS` names before anything is encoded.

    Args:
        scorer: scores the responses.
        encoded: comparisons as the scorer encoded them.
        batch_size: comparisons a forward pass.
        reference: of the reference instead of the policy.

    Raises:
        PrefkitError: the scorer gives no hidden states.
    """
    forward = scorer.reference if reference else scorer
    rows = iter(encoded)
    with evaluating(scorer):
        while batch := list(islice(rows, batch_size)):
            inputs = {name: tensor.to(scorer.device) for name, tensor in scorer.collate(batch).items()}
            with torch.no_grad():
                scores = forward(inputs)
            tokens = scores.tokens
            if tokens is None or tokens.predictors is None:
                raise PrefkitError("the scorer gives no hidden states: call scorer.provide(states.NEEDS) first")
            # Sums of large numbers that nearly cancel later: half precision would leave nothing of them.
            states = tokens.predictors.float()
            sums = states.new_zeros(len(scores.lengths), states.shape[1]).index_add(0, tokens.response, states)
            yield ResponseStates(scores.policy_logps.float().cpu(), scores.lengths.cpu(), sums.cpu())


class RowScores(NamedTuple):
    """CHES of one pair of a comparison.

    Args:
        source: file or data set, if known.
        line: 1-based line or row, if known.
        chosen: index of the chosen response.
        rejected: index of the rejected one.
        ches: see `displacement.ches_from_sums`.
        ln_ches: normalised by length.
    """

    source: str | None
    line: int | None
    chosen: int
    rejected: int
    ches: float
    ln_ches: float


def ches_of_comparisons(
    scorer: Scorer,
    comparisons: Iterable[Comparison],
    *,
    batch_size: int = 8,
    reference: bool = False,
    skipped: list[RecordError] | None = None,
) -> Iterator[RowScores]:
    """CHES of every pair of comparisons, a batch at a time.

    Whether the end-of-sequence token counts as a response token is the encoding's `append_eos`: as in training.

    Args:
        scorer: with the model before it is trained.
        comparisons: read once.
        batch_size: comparisons a forward pass, at least 1.
        reference: of the scorer's reference instead of its policy.
        skipped: where comparisons that cannot be encoded are set aside; without it, the first is an error.

    Raises:
        OptionError: the scorer has no hidden states, or the batch size is below 1.
        RecordError: a comparison cannot be encoded.
    """
    if batch_size < 1:
        raise OptionError(f"batch_size must be at least 1, got {batch_size}")
    scorer.provide(NEEDS)
    rows = iter(comparisons)
    while batch := list(islice(rows, batch_size)):
        found: list[tuple[Comparison, list[Pair], Encoded]] = []
        for comparison in batch:
            try:
                if made := pairs(comparison):
                    found.append((comparison, made, scorer.encode(comparison)))
            except RecordError as error:
                placed = error.at(comparison)
                if skipped is None:
                    raise placed from error
                skipped.append(placed)
        if not found:
            continue
        (scored,) = score_states(scorer, [e for _, _, e in found], batch_size=len(found), reference=reference)
        yield from _rows(found, scored)


def _rows(found: Sequence[tuple[Comparison, list[Pair], Encoded]], scored: ResponseStates) -> Iterator[RowScores]:
    start = 0
    for comparison, made, _ in found:
        chosen = torch.tensor([start + pair.chosen for pair in made])
        rejected = torch.tensor([start + pair.rejected for pair in made])
        sides = scored.sums[chosen], scored.sums[rejected], scored.lengths[chosen], scored.lengths[rejected]
        raw, normalised = ches_from_sums(*sides), ches_from_sums(*sides, length_normalize=True)
        for pair, one, two in zip(made, raw.tolist(), normalised.tolist(), strict=True):
            yield RowScores(comparison.source, comparison.line, pair.chosen, pair.rejected, one, two)
        start += len(comparison.responses)


@contextmanager
def evaluating(scorer: Scorer) -> Iterator[None]:
    """Without dropout, and back as it was."""
    if not isinstance(scorer, torch.nn.Module):
        yield
        return
    training = scorer.training
    scorer.eval()
    try:
        yield
    finally:
        scorer.train(training)
