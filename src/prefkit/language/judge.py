"""Judging: a causal language model that is shown two responses and names the better one by a letter.

Both orders are shown, because models favour a place. What counts is the log-probability of the two letters, so nothing
is sampled or parsed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from prefkit.comparisons import Comparison, RecordError, Text, Winner
from prefkit.comparisons import ranks as ranks_of
from prefkit.diagnostics import Ranked
from prefkit.errors import OptionError
from prefkit.language.scorer import LanguageScorer
from prefkit.objectives import score_all

JUDGE_TEMPLATE = (
    "Two answers to a request follow.\n\n# Request\n{prompt}\n\n# Answer A\n{first}\n\n# Answer B\n{second}\n\n"
    "Which answer is better? Reply with one letter, A or B."
)
"""What the judge is asked."""

_LETTERS = ("A", "B")


class LanguageJudge:
    """Ranks responses in pairs.

    Args:
        scorer: a causal language model; it is put into evaluation mode.
        template: what it is asked, with `{prompt}`, `{first}` and `{second}`. A model with a chat template is asked in
            a user's turn; another one reads the text, and "Answer:" after it.

    Raises:
        OptionError: the template lacks one of the three.
    """

    def __init__(self, scorer: LanguageScorer, template: str = JUDGE_TEMPLATE) -> None:
        for name in ("{prompt}", "{first}", "{second}"):
            if template.count(name) != 1:
                raise OptionError(f"the judge's template must hold {name} once")
        self.scorer, self.template = scorer.eval(), template
        self._chat = bool(scorer.encoder.options.chat_template or scorer.tokenizer.chat_template)

    def __call__(self, comparisons: Iterable[Comparison], skipped: list[RecordError]) -> Iterator[Ranked]:
        """Rank the responses of comparisons; the margin is that of the letters' log-probabilities, in nats.

        Responses that were judged equal are not compared. A comparison that is too long is set aside.
        """
        for comparison in comparisons:
            try:
                yield Ranked(comparison, self._margins(comparison))
            except RecordError as error:
                skipped.append(error.at(comparison))

    def _margins(self, comparison: Comparison) -> np.ndarray:
        count = len(comparison.responses)
        ranks = ranks_of(comparison) if count > 2 else None
        pairs = [
            (one, other)
            for one in range(count)
            for other in range(count)
            if one != other and (ranks is None or ranks[one] != ranks[other])
        ]
        encoded = [self.scorer.encode(self._asked(comparison, first, second)) for first, second in pairs]
        margins = np.zeros((count, count, 2))
        for (first, second), item in zip(pairs, encoded, strict=True):
            (scores,) = score_all(self.scorer, [item], batch_size=1)
            letter_a, letter_b = scores.policy_logps.tolist()
            margins[first, second, 0] = letter_a - letter_b
            margins[second, first, 1] = letter_b - letter_a
        return margins

    def _asked(self, comparison: Comparison, first: int, second: int) -> Comparison:
        given = {
            "{prompt}": shown(comparison.prompt_of(first)),
            "{first}": shown(comparison.responses[first]),
            "{second}": shown(comparison.responses[second]),
        }
        text = self.template
        # In one pass from the back: what is put in may itself hold a mark.
        for mark in sorted(given, key=self.template.index, reverse=True):
            place = self.template.index(mark)
            text = text[:place] + given[mark] + text[place + len(mark) :]
        if not self._chat:
            return Comparison((text + "\nAnswer:",), tuple(f" {letter}" for letter in _LETTERS), Winner(0))
        turns = tuple(({"role": "assistant", "content": letter},) for letter in _LETTERS)
        return Comparison((({"role": "user", "content": text},),), turns, Winner(0))


def shown(text: Text) -> str:
    """A prompt or response as plain text; of several messages with their roles."""
    if isinstance(text, str):
        return text.strip()
    if len(text) == 1:
        return str(text[0]["content"]).strip()
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in text)
