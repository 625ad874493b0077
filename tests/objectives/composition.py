"""Which parts of an objective go together: all are tried, and the outcome is the page `docs/composition.md`.

Run `python -m tests.objectives.composition` to write the page again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from prefkit.errors import OptionError
from prefkit.objectives import ListScores, PairScores, TokenScores, make_objective
from prefkit.objectives.presets import CATALOGUE, PRESETS

PAGE = Path(__file__).parents[2] / "docs" / "composition.md"
PAIRS, PLACES = 6, 4

DATA: Mapping[str, Callable[[PairScores], PairScores]] = {
    "hard labels": lambda scores: scores,
    "soft labels": lambda scores: replace(scores, probabilities=torch.tensor([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])),
    "record weights": lambda scores: replace(scores, weights=torch.tensor([0.5, 1.0, 2.0, 1.0, 0.3, 1.5])),
    "both": lambda scores: DATA["soft labels"](DATA["record weights"](scores)),
}
"""What pairs of the data may carry."""


@dataclass(frozen=True)
class Outcome:
    """What became of a composition: its losses and their gradient, or why it was refused."""

    losses: Tensor | None = None
    gradient: Tensor | None = None
    refused: str = ""


def compose(preset: str, given: Mapping[str, str | None], scores: Callable[[], tuple[Any, Tensor]]) -> Outcome:
    """Build an objective and take its losses and their gradient."""
    try:
        objective = make_objective(
            {"kind": preset, **{role: {"kind": name} if name else None for role, name in given.items()}}
        )
        objective.prepare([f"annotator {index}" for index in range(PAIRS)])
        objective.equip(SimpleNamespace(width=8, ref_width=8, ref_depth=3))
        torch.manual_seed(0)
        view, policy = scores()
        losses = objective(view)
    except OptionError as error:
        return Outcome(refused=str(error))
    (gradient,) = torch.autograd.grad(losses.sum(), policy)
    return Outcome(losses.detach(), gradient)


def pair_scores(data: str) -> tuple[PairScores, Tensor]:
    """Pairs with everything that a part may read, and the leaf of their policy's scores, `[2, pairs]`."""
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(3, 7, (2, PAIRS), generator=generator)
    policy = (-12 * torch.rand(2, PAIRS, generator=generator) - 4).requires_grad_()
    ref = policy.detach() + torch.randn(2, PAIRS, generator=generator)
    scores = PairScores(
        *policy.unbind(),
        *ref.unbind(),
        *lengths.unbind(),
        strengths=torch.tensor([0.6, 0.9, 0.55, 0.8, 0.7, 0.95]),
        annotators=torch.arange(PAIRS) % 3,
        margins=torch.randn(PAIRS, generator=generator),
        chosen_tokens=token_scores(policy[0], ref[0], lengths[0], generator),
        rejected_tokens=token_scores(policy[1], ref[1], lengths[1], generator),
    )
    return DATA[data](scores), policy


def token_scores(policy: Tensor, ref: Tensor, lengths: Tensor, generator: torch.Generator) -> TokenScores:
    """Tokens that share the log-probability of their response."""
    owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    count = len(owner)
    return TokenScores(
        (policy / lengths)[owner],
        owner,
        ref_logps=(ref / lengths)[owner],
        kl=torch.rand(count, generator=generator),
        states=torch.randn(count, 8, generator=generator),
        layers=torch.randn(count, 3, 8, generator=generator),
        steps=torch.zeros(count, dtype=torch.long),
    )


def list_scores() -> tuple[ListScores, Tensor]:
    """Ranked lists of up to four responses, and the leaf of their policy's scores."""
    generator = torch.Generator().manual_seed(6)
    policy = (-12 * torch.rand(PAIRS, PLACES, generator=generator) - 4).requires_grad_()
    mask = torch.ones(PAIRS, PLACES, dtype=torch.bool)
    mask[::2, -1] = False
    lengths = torch.randint(3, 7, (PAIRS, PLACES), generator=generator)
    ref = policy.detach() + torch.randn(PAIRS, PLACES, generator=generator)
    return ListScores(
        policy,
        torch.arange(PLACES).expand(PAIRS, PLACES),
        mask,
        ref_logps=ref,
        lengths=lengths,
        ratings=torch.arange(PLACES, 0, -1).float().expand(PAIRS, PLACES),
        tokens=token_scores(policy.flatten(), ref.flatten(), lengths.flatten(), generator),
    ), policy


Cell = tuple[str, str, str]
"""Name of the link or ranking, of the column, and of what the data carry."""


def pair_cells() -> Iterator[tuple[Cell, Outcome, Outcome]]:
    """Every link with every correction and weight, for every kind of data, beside the same without it."""
    for link in CATALOGUE["link"]:
        for data in DATA:

            def scores(data: str = data) -> tuple[PairScores, Tensor]:
                return pair_scores(data)

            plain = compose("dpo", {"link": link}, scores)
            yield (link, "", data), plain, compose("dpo", {"link": link}, lambda: pair_scores("hard labels"))
            for role in ("noise", "weights"):
                for name in CATALOGUE[role]:
                    yield (link, name, data), compose("dpo", {"link": link, role: name}, scores), plain


def list_cells() -> Iterator[tuple[Cell, Outcome, Outcome]]:
    """Every ranking with every correction, weight and reward, beside the same without it."""
    for ranking in CATALOGUE["ranking"]:
        plain = compose("plackett_luce", {"ranking": ranking}, list_scores)
        yield (ranking, "", "rankings"), plain, plain
        for role in ("noise", "weights", "reward"):
            for name in CATALOGUE[role]:
                found = compose("plackett_luce", {"ranking": ranking, role: name}, list_scores)
                yield (ranking, name, "rankings"), found, plain


def preset_cells() -> Iterator[tuple[Cell, Outcome, Outcome]]:
    """Every pairwise method with every correction, beside the same without any."""
    for preset, form in ((name, preset.form) for name, preset in PRESETS.items()):
        for data in DATA if form == "pairs" else ():

            def scores(data: str = data) -> tuple[PairScores, Tensor]:
                return pair_scores(data)

            plain = compose(preset, {"noise": None}, scores)
            for noise in CATALOGUE["noise"]:
                yield (preset, noise, data), compose(preset, {"noise": noise}, scores), plain


def page() -> str:
    """The page that says what works."""
    reasons: list[str] = []

    def mark(*outcomes: Outcome) -> str:
        found = [reason_of(outcome) for outcome in outcomes if outcome.refused]
        reasons.extend(reason for reason in found if reason not in reasons)
        marks = [f"[{reasons.index(reason) + 1}]" for reason in dict.fromkeys(found)]
        # A mark beside a number: it works, but not on all of the data.
        return " ".join(([] if found and len(found) == len(outcomes) else ["✓"]) + marks)

    pairs = {cell: outcome for cell, outcome, _ in pair_cells()}
    lists = {cell[:2]: outcome for cell, outcome, _ in list_cells()}
    corrections = [*CATALOGUE["noise"], *CATALOGUE["weights"]]
    rankings = list(CATALOGUE["ranking"])
    links = [
        [
            f"`{link}`",
            *(mark(pairs[link, "", data]) for data in DATA),
            # What the link refuses by itself is not said again.
            *(
                mark(*(pairs[link, name, data] for data in DATA if not pairs[link, "", data].refused))
                for name in corrections
            ),
        ]
        for link in CATALOGUE["link"]
    ]
    ranked = [
        [f"`{name}`", *(mark(lists[ranking, name]) for ranking in rankings)]
        for name in (*corrections, *CATALOGUE["reward"])
    ]
    notes = "\n".join(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))
    return f"""# Composition

Which parts of an objective go together. Every cell was tried on scores that carry everything a part may read. ✓ means
that loss and gradient are finite and that the part changed the loss; a number, that the combination is an error, for
the reason below; both, that it is an error on some of the data. Nothing is ignored in silence.

`python -m tests.objectives.composition` writes this page again, and a test compares it with the code.

## Pairs

Links, with the reward `log_ratio`, on what the data may carry; then with each noise correction and each weight, on all
the data that the link takes.

{table(["link", *DATA, *(f"`{name}`" for name in corrections)], links)}

## Lists

Rankings with each noise correction, weight and reward.

{table(["", *(f"`{ranking}`" for ranking in rankings)], ranked)}

## Why not

{notes}
"""


def reason_of(outcome: Outcome) -> str:
    """The reason in a message that begins with the place and may end with it in brackets."""
    message = outcome.refused
    return message[message.rindex("(") + 1 : -1] if message.endswith(")") else message.split(": ", 1)[-1]


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
