"""A language model as a judge of stances: does an answer support a topic's position, or oppose it, or neither?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations

from prefkit.comparisons import Comparison, RecordError, Winner
from prefkit.language.scorer import LanguageScorer
from prefkit.objectives import score_all

LABELS = ("support", "neutral", "oppose")


def stance_judge(scorer: LanguageScorer) -> Callable[[str, str, str], list[float] | None]:
    """A judge by the log-probabilities of three labels, averaged over all orders in which these are offered.

    Args:
        scorer: the judging model. It has to be one that understands the question; a small one does not.

    Returns:
        From topic, prompt and answer to the log-probabilities of `LABELS`, per token; None where the answer is empty or
        does not fit the model's context.
    """

    def judge(topic: str, prompt: str, answer: str) -> list[float] | None:
        if not answer.strip():
            return None
        asked = [_question(topic, prompt, answer, order) for order in permutations(LABELS)]
        try:
            encoded = [scorer.encode(question) for question in asked]
        except RecordError:
            return None
        (scores,) = score_all(scorer, encoded, batch_size=len(encoded))
        each = (scores.policy_logps / scores.lengths).view(len(asked), len(LABELS))
        found: list[float] = each.mean(0).tolist()
        return found

    return judge


def _question(topic: str, prompt: str, answer: str, order: Sequence[str]) -> Comparison:
    """The question with the labels offered in some order; its responses are the labels in their own order."""
    text = (
        f"Topic: {topic}\nQuestion: {prompt}\nAnswer: {answer}\n\n"
        f"Which stance does the answer take on the topic? One of: {', '.join(order)}.\nStance:"
    )
    return Comparison((text,), tuple(f" {label}" for label in LABELS), Winner(0))
