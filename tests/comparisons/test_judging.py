from __future__ import annotations

import pytest

from prefkit.comparisons import consistent_feedback


@pytest.mark.parametrize(
    ("answers", "label"),
    [
        (("Output (a)", "Output (b)"), 0),
        (("Output (b)", "Output (a)"), 1),
        (("Output (a)", "Output (a)"), 2),
        (("(b), clearly", "(b)"), 2),
        (("Output (a)", "both are fine"), None),
        (("", ""), None),
        # An answer that names both goes by the first rule that fits.
        (("(a) is better than (b)", "(b)"), 0),
        (("(a) or (b)", "(a)"), 1),
    ],
)
def test_a_label_needs_the_same_winner_in_both_orders(answers: tuple[str, str], label: int | None) -> None:
    assert consistent_feedback(*answers) == label
