"""Every part with every other: it works, or an error says why it makes no sense."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.objectives import composition
from tests.objectives.composition import Cell, Outcome

PAIRS, LISTS, METHODS = (
    list(cells()) for cells in (composition.pair_cells, composition.list_cells, composition.preset_cells)
)
REWARDS = composition.CATALOGUE["reward"]
SATURATED = {("sppo", "latent"), ("smpo", "latent")}
"""Their losses of the two labels are a thousand nats apart (SmPO's beta is made for denoising errors), so that the
posterior of a label is 0 or 1 and nothing is left to learn: the loss is 0, which is what the page of LCPO warns of."""


def named(cells: list[tuple[Cell, Outcome, Outcome]]) -> Iterator[object]:
    return (pytest.param(cell, outcome, plain, id="-".join(filter(None, cell))) for cell, outcome, plain in cells)


@pytest.mark.parametrize(("cell", "outcome", "plain"), [*named(PAIRS), *named(LISTS), *named(METHODS)])
def test_parts_work_together_or_say_why_not(cell: Cell, outcome: Outcome, plain: Outcome) -> None:
    _, part, data = cell
    if outcome.refused:
        assert len(composition.reason_of(outcome).split()) > 5
        return
    assert not plain.refused
    assert outcome.losses is not None
    assert outcome.gradient is not None
    assert outcome.losses.isfinite().all()
    assert outcome.gradient.isfinite().all()
    assert outcome.gradient.any() or cell[:2] in SATURATED
    # A part that is not the first of its kind, and what the data say, change the loss.
    assert plain.losses is not None
    changes = (part and part not in REWARDS) or data not in ("hard labels", "rankings")
    assert not changes or not outcome.losses.allclose(plain.losses)


def test_only_sorted_batches_refuse_a_correction_of_pairs() -> None:
    """What is refused is known by name: a new refusal is a decision, and not an accident."""
    refused = {(link, part) for (link, part, data), outcome, _ in PAIRS if outcome.refused and data == "hard labels"}
    expected = {(link, part) for link in ("aot", "aot_unpaired") for part in composition.CATALOGUE["weights"]}
    known = {part for _, part in expected} | {"conservative", "robust", ""}
    # The batch's temperature goes by the pairs as they were labelled.
    # So does a margin that belongs to the label.
    expected |= {(link, part) for link in ("batch_logistic", "adaptive_margin") for part in ("conservative", "robust")}
    assert {cell for cell in refused if cell[1] in known} == expected


@pytest.mark.parametrize("data", ["soft labels", "record weights"])
def test_sorted_batches_refuse_what_single_pairs_carry(data: str) -> None:
    refused = {link for (link, part, seen), outcome, _ in PAIRS if outcome.refused and (part, seen) == ("", data)}
    assert refused == {"aot", "aot_unpaired"} | (
        {"batch_logistic", "adaptive_margin"} if data == "soft labels" else set()
    )


def test_the_page_is_what_the_code_does() -> None:
    assert composition.PAGE.read_text(encoding="utf-8") == composition.page(), (
        "docs/composition.md is stale: run python -m tests.objectives.composition"
    )
