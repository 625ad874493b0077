"""Judging: from a judge's verdicts on pairs to strengths, ranked pairs and soft labels.

A judge is shown two responses and names one of them by a token; the logits of the two tokens say how sure it is. Judges
favour a place, so both orders are shown and averaged.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prefkit.comparisons import Comparison, Text
from prefkit.errors import OptionError, unknown

PairScheme: TypeAlias = Literal["all", "best_rest", "opposite", "half_offset", "adjacent", "best_worst", "vs_baseline"]
"""Which pairs a ranking of K gives: every two; the best with each other one; rank a with K - 1 - a; rank a with
a + ceil(K / 2); neighbours; the best with the worst; each response with the baseline that all were judged against."""

StrengthLabel: TypeAlias = Literal["pairwise", "bt", "gap", "gap_sigmoid"]
"""How the strengths s of two responses become the probability that the stronger one is preferred: the judge's own
probability; sigmoid(logit s - logit s'); (1 + s - s') / 2; sigmoid(s - s')."""

_SCHEMES = ("all", "best_rest", "opposite", "half_offset", "adjacent", "best_worst", "vs_baseline")
_LABELS = ("pairwise", "bt", "gap", "gap_sigmoid")


def judge_matrix(
    first_logits: Float[Tensor, "k k"],
    second_logits: Float[Tensor, "k k"],
    *,
    position_debias: bool = True,
    temperature: float = 1.0,
) -> Float[Tensor, "k k"]:
    """Probability that response i beats response j, one half on the diagonal.

    Args:
        first_logits: logit of the token that names the first response, at [i, j] with i shown first and j second.
        second_logits: logit of the token that names the second one.
        position_debias: average both orders; otherwise the order in which i < j is shown decides alone.
        temperature: divides the logits.

    Raises:
        OptionError: there are fewer than two responses, or the temperature is not positive.

    Source: Online Self-Preferring Language Models, 2024 (arXiv 2405.14103).
    """
    _check_judge(len(first_logits), temperature)
    logits = (first_logits - second_logits) / temperature
    if position_debias:
        matrix = (torch.sigmoid(logits) + torch.sigmoid(-logits.T)) / 2
    else:
        upper = torch.sigmoid(logits).triu(1)
        matrix = upper + torch.sigmoid(-logits.T).tril(-1)
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    return matrix.masked_fill(own, 0.5)


def baseline_strengths(
    shown_first: tuple[Float[Tensor, " k"], Float[Tensor, " k"]],
    shown_second: tuple[Float[Tensor, " k"], Float[Tensor, " k"]] | None = None,
    *,
    baseline: int | None = None,
    temperature: float = 1.0,
) -> Float[Tensor, " k"]:
    """Probability that each response beats one baseline response: K judgements instead of K (K - 1) / 2.

    Args:
        shown_first: logits of the tokens that name the first and the second response, the response being shown first
            and the baseline second.
        shown_second: the same two logits with the baseline shown first; None leaves this order out.
        baseline: place of the baseline, whose strength is one half; None if it is none of the responses.
        temperature: divides the logits.

    Raises:
        OptionError: there is no such response, or the temperature is not positive.

    Source: Online Self-Preferring Language Models, 2024 (arXiv 2405.14103).
    """
    first, second = shown_first
    _check_judge(max(len(first), 2), temperature)
    strengths = torch.sigmoid((first - second) / temperature)
    if shown_second is not None:
        strengths = (strengths + torch.sigmoid((shown_second[1] - shown_second[0]) / temperature)) / 2
    if baseline is None:
        return strengths
    _check_baseline(baseline, len(strengths))
    return strengths.index_fill(0, torch.tensor([baseline], device=strengths.device), 0.5)


class RankedPairs(NamedTuple):
    """Pairs of responses by rank, with soft labels.

    Args:
        strengths: of each response: its mean probability of winning, or that against the baseline.
        ranking: places of the responses, strongest first, ties by place.
        pairs: places of the higher and of the lower response of each pair.
        labels: probability that the higher one is preferred; below one half where a cyclic judge contradicts the rank.
    """

    strengths: Float[Tensor, " k"]
    ranking: Int[Tensor, " k"]
    pairs: Int[Tensor, "n 2"]
    labels: Float[Tensor, " n"]


def ranked_pairs(
    judged: Float[Tensor, "k k"] | Float[Tensor, " k"],
    *,
    scheme: PairScheme = "all",
    label: StrengthLabel | None = None,
    baseline: int | None = None,
    clip: float = 1e-6,
) -> RankedPairs:
    """Rank responses by what a judge said and pair them.

    Args:
        judged: probabilities that i beats j (`judge_matrix`), or strengths (`baseline_strengths`).
        scheme: which pairs.
        label: soft label of a pair; by default "pairwise" for a matrix and "bt" for strengths, which is exact where
            the judge follows a Bradley-Terry model.
        baseline: place of the baseline, for the scheme "vs_baseline".
        clip: strengths are kept this far from 0 and 1 before their logits are taken.

    Raises:
        OptionError: a scheme or label is unknown or does not apply, or what was judged is no probability.

    Source: Online Self-Preferring Language Models, 2024 (arXiv 2405.14103); which pairs and labels the paper takes is
    not certain.
    """
    matrix = judged if judged.ndim == 2 else None
    label = label or ("bt" if matrix is None else "pairwise")
    if scheme not in _SCHEMES:
        raise OptionError(unknown("scheme of pairs", scheme, _SCHEMES))
    if label not in _LABELS:
        raise OptionError(unknown("label of strengths", label, _LABELS))
    if matrix is None and label == "pairwise" and scheme != "vs_baseline":
        raise OptionError("label 'pairwise' needs the judge's whole matrix; with strengths: bt, gap or gap_sigmoid")
    count = len(judged)
    if count < 2:
        raise OptionError(f"ranking needs at least two responses, got {count}")
    if bool(((judged < 0) | (judged > 1)).any()):
        raise OptionError("probabilities and strengths must lie in [0, 1]")
    if matrix is not None and not torch.allclose(matrix + matrix.T, torch.ones_like(matrix), rtol=0, atol=1e-6):
        raise OptionError("the matrix must hold P(i beats j) = 1 - P(j beats i), within 1e-6")
    strengths = judged if matrix is None else (matrix.sum(1) - matrix.diagonal()) / (count - 1)
    ranking = torch.argsort(strengths, descending=True, stable=True)
    if scheme == "vs_baseline":
        return _against(strengths, ranking, matrix, baseline)
    pairs = pairs_of_ranking(ranking, scheme)
    higher, lower = pairs.unbind(1)
    if matrix is not None and label == "pairwise":
        return RankedPairs(strengths, ranking, pairs, matrix[higher, lower])
    gap = strengths[higher] - strengths[lower]
    if label == "bt":
        logits = torch.logit(strengths.clamp(clip, 1 - clip))
        gap = logits[higher] - logits[lower]
    return RankedPairs(strengths, ranking, pairs, (1 + gap) / 2 if label == "gap" else torch.sigmoid(gap))


def pairs_of_ranking(ranking: Int[Tensor, " k"], scheme: PairScheme = "all") -> Int[Tensor, "n 2"]:
    """Which responses of a ranking are compared: places of the higher and of the lower one of each pair.

    Args:
        ranking: places of at least two responses, the best first.
        scheme: which pairs; not "vs_baseline", which needs to know how strong the baseline is.

    Raises:
        OptionError: the scheme is unknown or "vs_baseline".
    """
    schemes = [known for known in _SCHEMES if known != "vs_baseline"]
    if scheme not in schemes:
        raise OptionError(unknown("scheme of pairs", scheme, schemes))
    order = ranking.tolist()
    pairs = [(order[high], order[low]) for high, low in _ranks(len(order), scheme)]
    return torch.tensor(pairs, device=ranking.device)


def _against(strengths: Tensor, ranking: Tensor, matrix: Tensor | None, baseline: int | None) -> RankedPairs:
    if baseline is None:
        raise OptionError("scheme 'vs_baseline' needs the place of the baseline")
    _check_baseline(baseline, len(strengths))
    wins = strengths if matrix is None else matrix[:, baseline]
    others = [place for place in range(len(strengths)) if place != baseline]
    ahead = wins[others] >= 0.5
    pairs = [(k, baseline) if better else (baseline, k) for k, better in zip(others, ahead.tolist(), strict=True)]
    labels = torch.where(ahead, wins[others], 1 - wins[others])
    return RankedPairs(strengths, ranking, torch.tensor(pairs, device=strengths.device), labels)


def _ranks(count: int, scheme: PairScheme) -> Iterator[tuple[int, int]]:
    """Which ranks are paired."""
    match scheme:
        case "all":
            return itertools.combinations(range(count), 2)
        case "best_rest":
            return ((0, rank) for rank in range(1, count))
        case "opposite":
            return ((rank, count - 1 - rank) for rank in range(count // 2))
        case "half_offset":
            half = (count + 1) // 2
            return ((rank, rank + half) for rank in range(count - half))
        case "adjacent":
            return itertools.pairwise(range(count))
    return iter([(0, count - 1)])


def judged_comparisons(prompt: Text, responses: Sequence[Text], ranked: RankedPairs) -> list[Comparison]:
    """Pairs as comparisons whose strength is the soft label, as the objective `osp` takes them.

    Args:
        prompt: of all responses.
        responses: what was ranked.
        ranked: their pairs. A pair of two equal responses says nothing and is left out.
    """
    return [
        Comparison.pair(prompt, responses[higher], responses[lower], strength=label)
        for (higher, lower), label in zip(ranked.pairs.tolist(), ranked.labels.tolist(), strict=True)
        if responses[higher] != responses[lower]
    ]


def _check_judge(count: int, temperature: float) -> None:
    if count < 2:
        raise OptionError(f"a judge compares at least two responses, got {count}")
    if not temperature > 0:
        raise OptionError(f"temperature must be greater than 0, got {temperature}")


def _check_baseline(baseline: int, count: int) -> None:
    if not 0 <= baseline < count:
        raise OptionError(f"baseline must be a place from 0 to {count - 1}, got {baseline}")
