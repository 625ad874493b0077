"""Judging: labels from judges, language models above all, whose answers have to be read and checked for bias."""

from __future__ import annotations

from typing import Literal


def consistent_feedback(answer_ab: str, answer_ba: str) -> Literal[0, 1, 2] | None:
    """The label of a pair that a judge saw twice, the second time with the two items exchanged.

    An item that wins in both orders is preferred; a judge who names the same place twice goes by place, which is a tie
    and no evidence.

    Args:
        answer_ab: what the judge said when the first item was shown as (a) and the second as (b).
        answer_ba: what the judge said when they were exchanged.

    Returns:
        0 where the first item is preferred, 1 where the second is, 2 for a tie; None where an answer names neither.

    Source: Bansal et al. 2024 (JPO, arXiv 2404.00530), the authors' code.
    """
    if "(a)" in answer_ab and "(b)" in answer_ba:
        return 0
    if "(b)" in answer_ab and "(a)" in answer_ba:
        return 1
    named = ("(a)" in answer_ab and "(a)" in answer_ba) or ("(b)" in answer_ab and "(b)" in answer_ba)
    return 2 if named else None
