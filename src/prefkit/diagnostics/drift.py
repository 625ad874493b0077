"""Drift: how the stances that a model takes on contested topics move in the course of training.

A judge says of each answer whether it supports the topic's position, is neutral or opposes it. The mean over a topic's
prompts is the model's value vector there; a trajectory holds one for each checkpoint.

Source: Value Drifts: Tracing Value Alignment During LLM Post-Training, 2025 (arXiv 2510.26707).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prefkit.diagnostics.intervals import Interval, bootstrap_interval
from prefkit.errors import OptionError, PrefkitError
from prefkit.report import Curve, Plot, Table, curves

STANCES = ("support", "neutral", "oppose")
"""The labels, in the order of every last axis here."""

MOVED = 0.02
"""A stance that moves by less has no drift time worth showing: it is within the noise of sampling."""

_UNMOVED = 1e-12


class ValueVector(NamedTuple):
    """Stances on a topic: of each prompt that has a scored answer, and their mean."""

    per_prompt: Float[Tensor, "prompts stances"]
    value: Float[Tensor, " stances"]


class Magnitude(NamedTuple):
    """How far values moved: the signed change of each stance, and half the sum of their sizes."""

    magnitude: Float[Tensor, " stances"]
    total_variation: Float[Tensor, ""]


class DriftTime(NamedTuple):
    """When values had moved, as shares of the run.

    Args:
        first_reach: first checkpoint within the tolerance of the end.
        settled: first checkpoint from which all later ones are.
    """

    first_reach: Float[Tensor, " stances"]
    settled: Float[Tensor, " stances"]


class ValueGap(NamedTuple):
    """How the stances of chosen and rejected responses differ.

    Args:
        value_gap: mean of chosen less mean of rejected.
        total_variation: half the sum of its sizes.
        mean_pairwise_total_variation: mean of the same for each pair. Stances that differ within pairs move a model
            even where the means are alike.
    """

    value_gap: Float[Tensor, " stances"]
    total_variation: Float[Tensor, ""]
    mean_pairwise_total_variation: Float[Tensor, ""]


def stance_probabilities(label_logprobs: Float[Tensor, "*rows stances"]) -> Float[Tensor, "*rows stances"]:
    """What a judge thinks of each answer: its log-probabilities of the three labels, made to sum to 1 among them.

    Args:
        label_logprobs: of support, neutral and oppose, in nats.

    Raises:
        PrefkitError: there are not three labels, or none of an answer's has a probability.
    """
    if label_logprobs.shape[-1:] != (len(STANCES),):
        raise PrefkitError(
            f"a judge gives {len(STANCES)} labels ({', '.join(STANCES)}), got shape {tuple(label_logprobs.shape)}"
        )
    found = torch.softmax(label_logprobs, -1)
    if not bool(torch.isfinite(found).all()):
        raise PrefkitError("the judge's log-probabilities must be numbers below infinity, at least one above minus it")
    return found


def value_vector(
    stance_probs: Float[Tensor, "prompts generations stances"],
    generation_mask: Bool[Tensor, "prompts generations"] | None = None,
) -> ValueVector:
    """Mean over the answers of each prompt, then over the prompts, which count alike.

    Args:
        stance_probs: stances of each answer, see `stance_probabilities`.
        generation_mask: which answers were scored; all by default. A prompt without one is left out.

    Raises:
        PrefkitError: stances do not sum to 1, shapes do not fit, or no answer was scored.
    """
    probs = stance_probs
    if probs.ndim != 3 or probs.shape[2] != len(STANCES):
        raise PrefkitError(f"stances must be [prompts, generations, {len(STANCES)}], got {tuple(probs.shape)}")
    mask = torch.ones(probs.shape[:2], dtype=torch.bool, device=probs.device)
    if generation_mask is not None:
        if generation_mask.shape != mask.shape:
            raise PrefkitError(f"generation_mask must be {tuple(mask.shape)}, got {tuple(generation_mask.shape)}")
        mask = generation_mask.bool()
    _check_stances("stance_probs", probs[mask])
    counts = mask.sum(1)
    scored = counts > 0
    if not bool(scored.any()):
        raise PrefkitError("every answer of the topic was masked: nothing is known about its stances")
    sums = torch.where(mask[:, :, None], probs, 0.0).sum(1)
    per_prompt = sums[scored] / counts[scored, None]
    return ValueVector(per_prompt, per_prompt.mean(0))


def drift_magnitude(before: Float[Tensor, " stances"], after: Float[Tensor, " stances"]) -> Magnitude:
    """How far a value vector moved."""
    change = after - before
    return Magnitude(change, 0.5 * change.abs().sum(-1))


def value_gap(chosen_probs: Float[Tensor, "pairs stances"], rejected_probs: Float[Tensor, "pairs stances"]) -> ValueGap:
    """How far a preference set can be expected to move values.

    Args:
        chosen_probs: stances of the chosen responses.
        rejected_probs: stances of the rejected ones.

    Raises:
        PrefkitError: shapes differ, there are no pairs, or stances do not sum to 1.
    """
    if chosen_probs.shape != rejected_probs.shape or chosen_probs.ndim != 2 or not len(chosen_probs):
        raise PrefkitError(
            f"stances of both sides must be [pairs, {len(STANCES)}] with at least one pair, got "
            f"{tuple(chosen_probs.shape)} and {tuple(rejected_probs.shape)}"
        )
    _check_stances("chosen_probs", chosen_probs)
    _check_stances("rejected_probs", rejected_probs)
    difference = chosen_probs - rejected_probs
    gap = difference.mean(0)
    return ValueGap(gap, 0.5 * gap.abs().sum(), 0.5 * difference.abs().sum(1).mean())


@dataclass(frozen=True)
class ValueTrajectory:
    """Value vectors of one topic, or of the mean of several, at the checkpoints of a run.

    Args:
        steps: training steps, increasing, at least two.
        values: stances at each, summing to 1.
        name: of the topic.
        low: lower end of each value's interval, if known.
        high: upper end.

    Raises:
        PrefkitError: fewer than two checkpoints, steps that do not increase, or stances that do not sum to 1.
    """

    steps: tuple[int, ...]
    values: Float[Tensor, "checkpoints stances"]
    name: str = ""
    low: Float[Tensor, "checkpoints stances"] | None = None
    high: Float[Tensor, "checkpoints stances"] | None = None

    def __post_init__(self) -> None:
        if len(self.steps) < 2:
            raise PrefkitError(f"a trajectory needs at least 2 checkpoints, got {len(self.steps)}")
        if any(later <= earlier for earlier, later in zip(self.steps, self.steps[1:], strict=False)):
            raise PrefkitError(f"steps must increase, got {list(self.steps)}")
        if self.values.shape != (len(self.steps), len(STANCES)):
            raise PrefkitError(f"values must be [{len(self.steps)}, {len(STANCES)}], got {tuple(self.values.shape)}")
        _check_stances("values", self.values)

    def magnitude(self, start: int = 0, end: int = -1) -> Magnitude:
        """How far values moved between two checkpoints, given by their place."""
        return drift_magnitude(self.values[start], self.values[end])

    def drift_times(self, fraction: float = 0.95) -> DriftTime:
        """When each stance had come within (1 - fraction) of its whole way to where it ended; 0 where it never moved.

        Args:
            fraction: in (0, 1). The paper's exact rule is not known; 0.95 is this library's.

        Raises:
            OptionError: it is out of range.
        """
        if not 0 < fraction < 1:
            raise OptionError(f"fraction must lie in (0, 1), got {fraction}")
        end = self.values[-1]
        moved = (end - self.values[0]).abs()
        # Room for rounding, so that a point exactly at the bound counts.
        room = max(_UNMOVED, 8 * torch.finfo(self.values.dtype).eps)
        near = (self.values - end).abs() <= (1 - fraction) * moved + room
        # The last checkpoint is where the end is, so both are always found.
        first = near.long().argmax(0)
        settled = near.flip(0).long().cumprod(0).sum(0).neg() + len(self.steps)
        steps = torch.tensor(self.steps, dtype=self.values.dtype, device=self.values.device)
        shares = (steps - steps[0]) / (steps[-1] - steps[0])
        still = moved < _UNMOVED
        return DriftTime(*(torch.where(still, 0.0, shares[place]) for place in (first, settled)))

    def drift_time(
        self, fraction: float = 0.95, mode: Literal["first_reach", "settled"] = "first_reach"
    ) -> Float[Tensor, " stances"]:
        """See `drift_times`.

        Raises:
            OptionError: the fraction is out of range, or the mode unknown.
        """
        if mode not in DriftTime._fields:
            raise OptionError(f"mode must be 'first_reach' or 'settled', got {mode!r}")
        found: Tensor = getattr(self.drift_times(fraction), mode)
        return found

    def table(self) -> Table:
        """One row a stance: where it began and ended, how far it moved, and when."""
        change, times = self.magnitude().magnitude, self.drift_times()
        rows = [
            [stance, start, end, moved, *((early, late) if abs(moved) >= MOVED else (None, None))]
            for stance, start, end, moved, early, late in zip(
                STANCES,
                *(values.tolist() for values in (self.values[0], self.values[-1], change, *times)),
                strict=True,
            )
        ]
        columns = ["stance", "at first", "at the end", "change", "first reached", "settled"]
        return Table(columns, rows, f"Stances: {self.name}" if self.name else "Stances")

    def plot(self) -> Plot:
        """The stances over the steps, with their intervals where known."""
        lines = {
            stance: Curve(
                self.steps,
                self.values[:, place].tolist(),
                None if self.low is None else self.low[:, place].tolist(),
                None if self.high is None else self.high[:, place].tolist(),
            )
            for place, stance in enumerate(STANCES)
        }
        return curves(lines, title=f"Stances: {self.name}" if self.name else "Stances", y="probability")

    def to_frame(self) -> dict[str, list[float]]:
        """Columns by name, as `pandas.DataFrame` takes them."""
        columns = dict(zip(STANCES, self.values.T.tolist(), strict=True))
        return {"step": [float(step) for step in self.steps], **columns}


@dataclass(frozen=True)
class TopicValues:
    """What a probe measured of one topic at one checkpoint.

    Args:
        value: its value vector.
        intervals: of each stance, over prompts.
        prompts: how many had a scored answer.
    """

    value: ValueVector
    intervals: tuple[Interval, ...]
    prompts: int


class StanceProbe:
    """Asks a model value-laden questions and has a judge label its answers.

    Args:
        prompts: the questions.
        topics: the topic of each.
        generate: from a model, prompts and a seed to one answer a prompt; see `prefkit.language.sample`.
        judge: from topic, prompt and answer to the log-probabilities of the three stances; None where it cannot say.
        n_generations: answers a prompt, at least 1.

    Raises:
        PrefkitError: there are no prompts, or not one topic for each.
        OptionError: `n_generations` is below 1.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        topics: Sequence[str],
        generate: Callable[[Any, Sequence[str], int], Sequence[str]],
        judge: Callable[[str, str, str], Sequence[float] | None],
        n_generations: int = 5,
    ) -> None:
        if not prompts or len(prompts) != len(topics):
            raise PrefkitError(f"each prompt has one topic: got {len(prompts)} prompts and {len(topics)} topics")
        if n_generations < 1:
            raise OptionError(f"n_generations must be at least 1, got {n_generations}")
        self.prompts, self.topics = list(prompts), list(topics)
        self.generate, self.judge, self.n_generations = generate, judge, n_generations
        self.measured: dict[int, dict[str, TopicValues]] = {}

    def run(self, model: Any, step: int) -> dict[str, TopicValues]:
        """Probe a model and keep what was found under its step.

        Raises:
            PrefkitError: every answer to a topic's prompts failed.
        """
        answers = [self.generate(model, self.prompts, seed) for seed in range(self.n_generations)]
        probs = torch.zeros(len(self.prompts), self.n_generations, len(STANCES), dtype=torch.float64)
        mask = torch.zeros(probs.shape[:2], dtype=torch.bool)
        for place, (prompt, topic) in enumerate(zip(self.prompts, self.topics, strict=True)):
            for index, texts in enumerate(answers):
                said = self.judge(topic, prompt, texts[place])
                if said is not None:
                    probs[place, index] = stance_probabilities(torch.tensor(said, dtype=torch.float64))
                    mask[place, index] = True
        found = {}
        for topic in dict.fromkeys(self.topics):
            own = torch.tensor([name == topic for name in self.topics])
            try:
                vector = value_vector(probs[own], mask[own])
            except PrefkitError as error:
                raise PrefkitError(f"topic '{topic}': {error}") from error
            intervals = tuple(bootstrap_interval(column) for column in vector.per_prompt.T.tolist())
            found[topic] = TopicValues(vector, intervals, len(vector.per_prompt))
        self.measured[step] = found
        return found

    def trajectory(self, topic: str) -> ValueTrajectory:
        """The course of a topic over what was measured so far.

        Raises:
            PrefkitError: the topic is none, or fewer than two steps were measured.
        """
        if topic not in self.topics:
            raise PrefkitError(f"no prompt has the topic '{topic}'; there are {', '.join(sorted(set(self.topics)))}")
        steps = sorted(self.measured)
        found = [self.measured[step][topic] for step in steps]
        if len(steps) < 2:
            raise PrefkitError(f"a trajectory needs at least 2 checkpoints, got {len(steps)}")
        ends = [[[getattr(i, end) for i in each.intervals] for each in found] for end in ("low", "high")]
        low, high = (torch.tensor(end, dtype=torch.float64) for end in ends)
        return ValueTrajectory(tuple(steps), torch.stack([each.value.value for each in found]), topic, low, high)


def synthetic_value_pairs(
    prompts: Sequence[str],
    supporting: Sequence[str],
    opposing: Sequence[str],
    *,
    aligned: Literal["support", "oppose"] = "support",
) -> list[Mapping[str, str]]:
    """A preference set with a large value gap: for each prompt, one answer in support and one opposed.

    Args:
        prompts: the questions.
        supporting: an answer in support of each.
        opposing: an answer against.
        aligned: which of the two is chosen.

    Returns:
        Rows with `prompt`, `chosen` and `rejected`, as `load_comparisons` reads them.

    Raises:
        PrefkitError: the three differ in length.
        OptionError: `aligned` is neither.
    """
    if aligned not in ("support", "oppose"):
        raise OptionError(f"aligned must be 'support' or 'oppose', got {aligned!r}")
    if not len(prompts) == len(supporting) == len(opposing):
        raise PrefkitError(
            f"each prompt has one answer of each side: got {len(prompts)}, {len(supporting)} and {len(opposing)}"
        )
    sides = (supporting, opposing) if aligned == "support" else (opposing, supporting)
    return [
        {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        for prompt, chosen, rejected in zip(prompts, *sides, strict=True)
    ]


def _check_stances(name: str, probs: Tensor) -> None:
    sums = probs.sum(-1)
    good = (probs >= -1e-6).all() & ((sums - 1).abs() <= 1e-4).all()
    if not bool(good) or not bool(torch.isfinite(probs).all()):
        raise PrefkitError(f"{name} must be probabilities that sum to 1 over {', '.join(STANCES)}")
