"""Advice: from what an audit found to methods that fit, with the evidence for each.

The rules are data: what is looked at, from where on it counts, and what one does about it. `RULES` is the table of the
documentation. A rule fires on the near end of an interval, never on an estimate alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from prefkit.diagnostics.audit import NEAR, DataFindings, ModelFindings
from prefkit.diagnostics.audit_report import edge_noise
from prefkit.diagnostics.intervals import Interval, wilson_interval
from prefkit.diagnostics.label_noise import INFORMATIVE, LabelNoise
from prefkit.diagnostics.votes import Cycles, Groups, Reliability
from prefkit.report import Table

NOISY, CIRCULAR, ALIKE, LOPSIDED, HARD, GRADED, LISTS, EXPLAINED = 0.1, 0.03, 0.1, 0.62, 0.6, 0.5, 0.5, 0.5
"""From where on a finding counts, see `RULES`."""

LEAST_REPEATED = 50
"""Pairs that were judged more than once from which on votes, and not a model, say how noisy labels are."""


class Evidence(NamedTuple):
    """Why a rule fired.

    Args:
        text: in words, with figures.
        weight: how much it matters, in [0, 1]: the order of the advice.
        figure: what the method may need to know (a flip rate).
    """

    text: str
    weight: float
    figure: float = 0.0


@dataclass(frozen=True)
class Rule:
    """A row of the table of rules.

    Args:
        finding: name of what is wrong with the data, or what they offer.
        looks_at: what is measured, and from where on it counts.
        recipe: the recipe to take, by its name on the command line; None for an objective without one.
        remedy: what to do, in words.
        evidence: the rule itself.
        objective: the objective's configuration, from the evidence.
        defect: whether it is a defect of the data; else an opportunity, or the default.
    """

    finding: str
    looks_at: str
    recipe: str | None
    remedy: str
    evidence: Callable[[DataFindings, ModelFindings | None], Evidence | None]
    objective: Callable[[float], Mapping[str, Any]]
    defect: bool = True


@dataclass(frozen=True)
class Advice:
    """One rule that fired."""

    rule: Rule
    evidence: Evidence

    @property
    def objective(self) -> dict[str, Any]:
        """The objective's configuration."""
        return dict(self.rule.objective(self.evidence.figure))


def label_noise(data: DataFindings, model: ModelFindings | None) -> tuple[Interval, str] | None:
    """The share of wrong labels by the best source there is, and which that is; None where nothing can tell.

    Several judgements of one pair say more than a model that has to learn what people want; where annotators fall into
    groups, noise is what is left within the largest.
    """
    votes = data.within_groups or data.reliability
    if isinstance(votes, Reliability) and votes.pairs >= LEAST_REPEATED:
        return votes.noise, "judgements of the same pairs"
    found = model.noise if model is not None else None
    if isinstance(found, LabelNoise) and found.accuracy.low >= INFORMATIVE:
        return found.noise, "the model's states"
    return None


def _noisy(data: DataFindings, model: ModelFindings | None) -> Evidence | None:
    found = label_noise(data, model)
    if found is None or found[0].low < NOISY:
        return None
    noise, source = found
    return Evidence(
        f"{noise} of the labels are wrong, by {source}", min(1.0, 2 * noise.mean), min(0.45, round(noise.mean, 2))
    )


def _groups(data: DataFindings, model: ModelFindings | None) -> Evidence | None:
    found = data.groups
    if not isinstance(found, Groups) or found.groups < 2 or not found.gain.low > 0.02:
        return None
    return Evidence(
        f"{found.groups} groups among {found.annotators} annotators: two judgements of a pair agree in "
        f"{found.agreement:.2f} of cases, within the groups in {found.within:.2f}",
        min(1.0, 0.5 + found.gain.mean),
    )


def _circular(data: DataFindings, model: ModelFindings | None) -> Evidence | None:
    found = data.cycles
    if not isinstance(found, Cycles):
        return None
    noise = edge_noise(data)
    if found.cyclic.low < noise * (1 - noise) + CIRCULAR:
        return None
    return Evidence(
        f"{found.cyclic} of {found.triads} triads go round; noise alone would make {noise * (1 - noise):.3f}",
        min(1.0, 4 * found.cyclic.mean),
    )


def _alike(data: DataFindings, model: ModelFindings | None) -> Evidence | None:
    if not data.decided:
        return None
    share = wilson_interval(data.near, data.decided)
    if share.low < ALIKE:
        return None
    return Evidence(f"{share} of the pairs share at least {NEAR} of their words", min(1.0, 0.3 + share.mean / 2))


def _long(data: DataFindings, model: ModelFindings | None) -> Evidence | None:
    bias = data.style.biases().get("words") if data.decided else None
    if bias is None or bias.differ < 0.2 or max(bias.wins.low, 1 - bias.wins.high) < LOPSIDED:
        return None
    which = "longer" if bias.wins.mean > 0.5 else "shorter"
    share = (
        bias.wins
        if which == "longer"
        else Interval(1 - bias.wins.mean, 1 - bias.wins.high, 1 - bias.wins.low, bias.wins.n)
    )
    return Evidence(
        f"the {which} response wins {share} of the pairs that differ in length", 2 * abs(bias.wins.mean - 0.5)
    )


def _hard(data: DataFindings, model: ModelFindings | None) -> Evidence | None:
    if model is None:
        return None
    nats = model.difficulty().nats
    share = wilson_interval(int((nats > 10).sum()), len(nats))
    if share.low < HARD:
        return None
    return Evidence(f"the model ranks {share} of the pairs wrongly by more than 10 nats before training", 0.2)


def _graded(data: DataFindings, model: ModelFindings | None) -> Evidence | None:
    if not data.decided or data.stated / data.decided < GRADED or len(set(data.strengths)) < 3:
        return None
    return Evidence(f"the strength of {data.stated / data.decided:.2f} of the preferences is known", 0.15)


def _lists(data: DataFindings, model: ModelFindings | None) -> Evidence | None:
    several = sum(count for number, count in data.responses.items() if number > 2)
    ranked = data.health.kinds.get("Ranking", 0) + data.health.kinds.get("Ratings", 0)
    share = min(several, ranked) / data.health.rows
    return (
        Evidence(f"{share:.2f} of the comparisons rank or rate three or more responses", 0.15)
        if share > LISTS
        else None
    )


def _explained(data: DataFindings, model: ModelFindings | None) -> Evidence | None:
    share = data.rationales / data.health.rows
    return Evidence(f"{share:.2f} of the comparisons have a rationale", 0.1) if share > EXPLAINED else None


def _always(data: DataFindings, model: ModelFindings | None) -> Evidence | None:
    return Evidence("the baseline that everything else is to be compared with", 0.05)


RULES: tuple[Rule, ...] = (
    Rule(
        "flipped labels",
        f"share of wrong labels, from pairs that were judged more than once (at least {LEAST_REPEATED}), else from the "
        f"model's states if these predict held-out labels in {INFORMATIVE} of cases; its interval lies above {NOISY}",
        "rdpo",
        "a loss that is unbiased at that flip rate; look at the suspect rows",
        _noisy,
        lambda rate: {"kind": "rdpo", "beta": 0.1, "flip_rate": rate},
    ),
    Rule(
        "annotator groups",
        "two or three groups with answers of their own predict held-out judgements better than one answer for all: the "
        "interval of the gain lies above 0.02 nats",
        "pal",
        "one policy a group (`group-1.jsonl`, ... are written), or a model of ideal points",
        _groups,
        lambda _: {"kind": "dpo", "beta": 0.1},
    ),
    Rule(
        "circles",
        f"share of triads that go round; its interval lies {CIRCULAR} above e (1 - e), which label noise e makes",
        "gpm",
        "an objective that does not assume one reward (ipo), or a model of general preferences",
        _circular,
        lambda _: {"kind": "ipo", "beta": 0.1},
    ),
    Rule(
        "near-identical pairs",
        f"share of pairs that share at least {NEAR} of their words; its interval lies above {ALIKE}",
        "ches",
        "train on the rows with the lowest CHES a token, with an imitation term",
        _alike,
        lambda _: {"kind": "dpo", "beta": 0.1, "regularisers": [{"kind": "sft", "weight": 0.1}]},
    ),
    Rule(
        "length bias",
        f"share of pairs that the longer (or the shorter) response wins; its interval lies above {LOPSIDED}",
        None,
        "a loss that does not learn what the lengths explain (length_dpo), or balanced data",
        _long,
        lambda _: {"kind": "length_dpo", "beta": 0.1},
    ),
    Rule(
        "hard pairs",
        f"share of pairs that the model ranks wrongly by more than 10 nats untrained; its interval lies above {HARD}",
        "ranking-accuracy",
        "give the reference less weight, or imitate good responses first (sft)",
        _hard,
        lambda _: {"kind": "dpo_gamma", "beta": 0.1, "ref_weight": 0.5},
        False,
    ),
    Rule(
        "known strengths",
        f"share of decided pairs whose strength or probability the data say, above {GRADED}, with three values or more",
        None,
        "weigh pairs by their strength",
        _graded,
        lambda _: {"kind": "dpo", "beta": 0.1, "weights": {"kind": "strength"}},
        False,
    ),
    Rule(
        "ranked lists",
        f"share of comparisons that rank or rate three or more responses, above {LISTS}",
        None,
        "learn from whole lists",
        _lists,
        lambda _: {"kind": "plackett_luce"},
        False,
    ),
    Rule(
        "rationales",
        f"share of comparisons with a rationale, above {EXPLAINED}",
        "rationales",
        "learn the reasons, too",
        _explained,
        lambda _: {"kind": "rationale_dpo"},
        False,
    ),
    Rule(
        "nothing in the way",
        "always",
        None,
        "plain DPO",
        _always,
        lambda _: {"kind": "dpo", "beta": 0.1},
        False,
    ),
)
"""What to do about what an audit finds."""


def advise(data: DataFindings, model: ModelFindings | None = None) -> list[Advice]:
    """The rules that fire, the most pressing first; plain DPO is always among them.

    Args:
        data: see `audit_data`.
        model: see `audit_model`; without it, what needs a model is not looked at.
    """
    fired = [Advice(rule, found) for rule in RULES if (found := rule.evidence(data, model)) is not None]
    return sorted(fired, key=lambda advice: -advice.evidence.weight)


def advice_table(advice: list[Advice]) -> Table:
    """One row a rule that fired."""
    rows = [
        [each.rule.finding, each.evidence.text, each.rule.recipe, each.objective["kind"], each.rule.remedy]
        for each in advice
    ]
    return Table(["finding", "evidence", "recipe", "objective", "what to do"], rows, "Advice, the most pressing first")


def rules_table() -> Table:
    """The rules, as the documentation lists them."""
    rows = [[rule.finding, rule.looks_at, rule.recipe, rule.objective(0.2)["kind"], rule.remedy] for rule in RULES]
    return Table(["finding", "when", "recipe", "objective", "what to do"], rows, "Rules")
