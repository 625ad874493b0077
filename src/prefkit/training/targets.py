"""What an objective takes from a comparison: which of its responses, and what was said about them.

A comparison is reduced to the responses that the objective looks at, and to entries (pairs, a list, labels,
demonstrations) that point at them. Nothing here knows how responses are encoded or scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeAlias

import pyarrow as pa
import torch
from pydantic import Field

from prefkit.comparisons import Companion, Comparison, Label, Ranking, Ratings, RecordError
from prefkit.comparisons.pairing import labels, pairs, ranks
from prefkit.errors import OptionError
from prefkit.objectives import Form, Targets
from prefkit.options import Options


class PairingOptions(Options):
    """How comparisons become what the objective compares; see `prefkit.comparisons.pairing`."""

    strategy: Literal["all", "best_worst", "adjacent"] = Field("all", description="which pairs of K responses")
    min_margin: float = Field(0.0, ge=0, description="least difference of ratings that makes a pair")
    ties: Literal["skip", "half"] = Field("skip", description="leave ties out, or label them one half")
    normalise: bool = Field(False, description="share the weight of a comparison among its pairs")
    threshold: float | None = Field(None, description="ratings from here on are good (unpaired objectives)")

    def check(self, form: Form) -> None:
        """Refuse options that the form of objective has no use for.

        Raises:
            OptionError: such an option was given.
        """
        used = {"pairs": {"strategy", "min_margin", "ties", "normalise"}, "labels": {"threshold"}}.get(form, set())
        for name, field in type(self).model_fields.items():
            if name not in used and getattr(self, name) != field.default:
                raise OptionError(f"pairing.{name} does not apply to an objective that takes {form}")


Accompany: TypeAlias = Callable[[Comparison, int, int], Sequence[tuple[int, Companion]]]
"""Makes the companions of a pair, each with the place of the objective's part that asks for it."""

Refuse: TypeAlias = Callable[[Comparison], None]
"""Raises a `RecordError` for a comparison that the objective cannot use."""

Entries: TypeAlias = dict[str, Any]
"""The entries of one comparison as a row of `SCHEMA`: one item a pair, list, label or demonstration."""

SCHEMA = pa.schema(
    {
        "index": pa.list_(pa.list_(pa.int32())),
        "weights": pa.list_(pa.float32()),
        "probabilities": pa.list_(pa.float32()),
        "strengths": pa.list_(pa.float32()),
        "annotators": pa.list_(pa.int32()),
        "margins": pa.list_(pa.float32()),
        "ratings": pa.list_(pa.list_(pa.float32())),
        "companions": pa.list_(pa.list_(pa.int32())),
        "ranks": pa.list_(pa.list_(pa.int32())),
        "labels": pa.list_(pa.bool_()),
        "responses": pa.int32(),
        "source": pa.string(),
        "line": pa.int64(),
    }
)
"""Columns of stored entries; those that a form does not have are null."""


LARGE_MARGIN = 20.0
"""Log-odds that no calibrated reward model gives to more than a few pairs: one label in 500 million would be wrong."""


class Selection(NamedTuple):
    """One comparison as an objective takes it: the responses that are looked at, and the entries that point at them."""

    comparison: Comparison
    entries: Entries


class Selector:
    """Takes from comparisons what an objective needs.

    Args:
        form: what the objective compares.
        needs: what else it needs; see `Objective.needs`.
        pairing: how pairs are made.
        accompany: further texts of a pair; see `Objective.accompany`.
        annotators: names that have an index already, in the order of their indices.
        refuse: raises an error for what the objective cannot use; see `Objective.refuse`.

    Attributes:
        annotators: index of each annotator by name.
        margins: how many margins of a reward model it has read.
        large_margins: how many of them exceed `LARGE_MARGIN`.
        joint: whether there were pairs of responses to different prompts.

    Raises:
        OptionError: a pairing option does not apply to the form.
    """

    def __init__(
        self,
        form: Form,
        needs: frozenset[str],
        pairing: PairingOptions,
        accompany: Accompany | None = None,
        annotators: Sequence[str] = (),
        refuse: Refuse | None = None,
    ) -> None:
        pairing.check(form)
        self.form, self.needs, self.pairing, self.accompany = form, needs, pairing, accompany
        self.annotators = {name: index for index, name in enumerate(annotators)}
        self.margins = self.large_margins = 0
        self.joint, self.refuse = False, refuse
        self._take: Callable[[Comparison], Selection] = {
            "pairs": self._pairs,
            "lists": self._list,
            "labels": self._labels,
            "demonstrations": self._demonstrations,
        }[form]

    def __call__(self, comparisons: Iterable[Comparison]) -> Iterator[Selection | RecordError]:
        """Select from each comparison; one that the objective cannot use gives an error, with its place, instead."""
        selections = map(self._select, comparisons)
        return _with_next_response(selections) if "kl" in self.needs else selections

    def _select(self, comparison: Comparison) -> Selection | RecordError:
        try:
            selection = self._take(comparison)
            if self.refuse is not None:
                self.refuse(comparison)
        except RecordError as error:
            return error.at(comparison)
        entries = selection.entries
        entries.update(responses=len(selection.comparison.responses), source=comparison.source, line=comparison.line)
        return selection

    def _pairs(self, comparison: Comparison) -> Selection:
        options = self.pairing
        found = pairs(
            comparison,
            strategy=options.strategy,
            min_margin=options.min_margin,
            ties=options.ties,
            normalise=options.normalise,
        )
        if not found:
            raise RecordError("no response is preferred to another (ties, or a margin below pairing.min_margin)")
        self.joint |= comparison.joint
        used = sorted({place for pair in found for place in (pair.chosen, pair.rejected)})
        place = {response: index for index, response in enumerate(used)}
        entries: Entries = {
            "index": [[place[pair.chosen], place[pair.rejected]] for pair in found],
            "weights": [pair.weight for pair in found],
            "probabilities": [pair.probability for pair in found],
        }
        if "strengths" in self.needs:
            if any(pair.strength is None for pair in found):
                raise RecordError("the objective needs to know how strongly a response is preferred", field="strength")
            entries["strengths"] = [pair.strength for pair in found]
        if "annotators" in self.needs:
            if comparison.annotator is None:
                raise RecordError("the objective needs to know who judged", field="annotator")
            annotator = self.annotators.setdefault(comparison.annotator, len(self.annotators))
            entries["annotators"] = [annotator] * len(found)
        if "margins" in self.needs:
            rewards = _rewards(comparison)
            margins = [rewards[pair.chosen] - rewards[pair.rejected] for pair in found]
            entries["margins"] = margins
            self.margins += len(margins)
            self.large_margins += sum(abs(margin) > LARGE_MARGIN for margin in margins)
        extra: list[Companion] = []
        if self.accompany is not None:
            entries["companions"] = []
            for entry, pair in enumerate(found):
                for part, companion in self.accompany(comparison, pair.chosen, pair.rejected):
                    entries["companions"].append([len(used) + len(extra), entry, companion.label, part])
                    extra.append(companion)
        return Selection(_keep(comparison, used, extra), entries)

    def _list(self, comparison: Comparison) -> Selection:
        order = list(ranks(comparison))
        if len(set(order)) == 1:
            raise RecordError("all responses are tied")
        entries: Entries = {"index": [list(range(len(order)))], "weights": [comparison.weight], "ranks": [order]}
        if "ratings" in self.needs:
            if not isinstance(comparison.judgement, Ratings):
                raise RecordError("the objective needs a rating of each response", field="judgement")
            entries["ratings"] = [list(comparison.judgement.values)]
        return Selection(comparison, entries)

    def _labels(self, comparison: Comparison) -> Selection:
        judged = labels(comparison, threshold=self.pairing.threshold)
        if not judged:
            raise RecordError("all responses are tied")
        entries: Entries = {
            "index": [[place, -1] for place in range(len(judged))],
            "weights": [comparison.weight] * len(judged),
            "labels": [good for _, good in judged],
        }
        return Selection(_keep(comparison, [place for place, _ in judged]), entries)

    def _demonstrations(self, comparison: Comparison) -> Selection:
        if isinstance(comparison.judgement, Label):
            if not comparison.judgement.good:
                raise RecordError("a response judged bad is nothing to imitate")
            best = [0]
        else:
            order = ranks(comparison)
            best = [place for place, rank in enumerate(order) if rank == 0]
            both_bad = isinstance(comparison.judgement, Ranking) and comparison.judgement.both_bad
            if both_bad or len(best) == len(order):
                raise RecordError("no response is better than the others")
        entries: Entries = {
            "index": [[place] for place in range(len(best))],
            "weights": [comparison.weight] * len(best),
        }
        return Selection(_keep(comparison, best), entries)


def collate_entries(
    rows: Sequence[Mapping[str, Any]], places: Sequence[int], form: Form, given: Sequence[str]
) -> Targets:
    """The entries of a batch as tensors.

    Args:
        rows: rows of `SCHEMA`.
        places: for each of them its place in the training data.
        form: what the objective compares.
        given: columns that say something in this data; the others are left out.
    """
    index: list[list[int]] = []
    first = 0
    for row in rows:
        index.extend([first + item if item >= 0 else -1 for item in entry] for entry in row["index"])
        first += row["responses"]
    width = max(map(len, index), default=2)
    columns: dict[str, torch.Tensor] = {}
    for name in given:
        values = [value for row in rows for value in row[name]]
        if name in _WIDE:
            values = [value + [0] * (width - len(value)) for value in values]
        column = torch.tensor(values, dtype=_DTYPES[name])
        columns[name] = column.reshape(len(values), width) if name in _WIDE else column
    if any(row.get("companions") is not None for row in rows):
        columns["companions"] = _companions(rows)
    owners = [place for place, row in zip(places, rows, strict=True) for _ in row["index"]]
    padded = [entry + [-1] * (width - len(entry)) for entry in index]
    return Targets(
        form=form,
        index=torch.tensor(padded, dtype=torch.long).reshape(len(padded), width),
        rows=torch.tensor(owners, dtype=torch.long),
        **columns,
    )


def _companions(rows: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    """The companions of all rows, counted as the flat scores and the entries of the batch are."""
    found: list[list[int]] = []
    response = entry = 0
    for row in rows:
        found.extend([response + place, entry + own, label, part] for place, own, label, part in row["companions"])
        response += row["responses"]
        entry += len(row["index"])
    return torch.tensor(found, dtype=torch.long).reshape(len(found), 4)


_WIDE = ("ranks", "ratings")
"""Columns with one value a place of a list."""

_DTYPES = {
    "margins": torch.float32,
    "ratings": torch.float32,
    "weights": torch.float32,
    "probabilities": torch.float32,
    "strengths": torch.float32,
    "annotators": torch.long,
    "ranks": torch.long,
    "labels": torch.bool,
}


def _keep(comparison: Comparison, places: Sequence[int], extra: Sequence[Companion] = ()) -> Comparison:
    """A comparison of some of the responses, in their order, and of further texts."""
    if not extra and len(places) == len(comparison.responses):
        return comparison
    responses = tuple(comparison.responses[place] for place in places) + tuple(text.response for text in extra)
    prompts = comparison.prompts
    if comparison.joint or any(text.prompt != comparison.prompt_of(places[0]) for text in extra):
        prompts = tuple(comparison.prompt_of(place) for place in places) + tuple(text.prompt for text in extra)
    steps = comparison.steps
    if steps is not None:
        steps = tuple(steps[place] for place in places) + (None,) * len(extra)
    # The judgement is in the entries by now; this one only has to fit the number of responses.
    judgement = Label(True) if len(responses) == 1 else Ranking((0,) * len(responses))
    return replace(comparison, prompts=prompts, responses=responses, steps=steps, judgement=judgement)


def _rewards(comparison: Comparison) -> Sequence[float]:
    """A reward model's reward of each response: the field `rewards`, or else the ratings."""
    given = comparison.extra.get("rewards")
    if given is None and isinstance(comparison.judgement, Ratings):
        return comparison.judgement.values
    if not isinstance(given, list | tuple) or len(given) != len(comparison.responses):
        raise RecordError(
            "the objective needs a reward model's reward of each response: a list 'rewards', or ratings",
            field="rewards",
        )
    rewards = [float(reward) for reward in given]
    if not all(math.isfinite(reward) for reward in rewards):
        raise RecordError(f"rewards must be finite numbers, got {rewards}", field="rewards")
    return rewards


def _with_next_response(selections: Iterable[Selection | RecordError]) -> Iterator[Selection | RecordError]:
    """Add to each comparison a response of the next one, the last taking it from the first.

    KTO (Ethayarajh et al., 2024, section 4.1) estimates its reference point from prompts with responses that belong
    to others. Fixing them with the data, rather than within a batch, lets the reference's scores be kept.
    """
    first: Selection | None = None
    waiting: Selection | None = None
    count = 0
    for selection in selections:
        if isinstance(selection, RecordError):
            yield selection
            continue
        if waiting is not None:
            yield _with_response_of(waiting, selection, count)
            count += 1
        first, waiting = first or selection, selection
    if waiting is not None and first is not None:
        if waiting is first:
            raise OptionError("the objective estimates its reference point from other records; one record is too few")
        yield _with_response_of(waiting, first, count)


def _with_response_of(selection: Selection, other: Selection, turn: int) -> Selection:
    comparison, responses = selection.comparison, other.comparison.responses
    # Taking turns, so that the order in which a source lists its responses does not decide whether they are good.
    mismatched = Companion(comparison.prompt_of(0), responses[turn % len(responses)])
    count = len(comparison.responses)
    entries = {
        **selection.entries,
        "index": [[place, count] for place, _ in selection.entries["index"]],
        "responses": count + 1,
    }
    return Selection(_keep(comparison, range(count), (mismatched,)), entries)
