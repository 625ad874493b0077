"""Benchmarks: published sets of pairs with a known better response, each measured as its authors do.

Whatever ranks responses is measured: rewards, implicit rewards of a policy, or a judge that is shown two responses.
A judge sees each pair in both orders; what follows from that is part of each protocol.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from prefkit.comparisons import Comparison, Ranking, Winner
from prefkit.diagnostics.intervals import Interval, Statistic, bootstrap_interval
from prefkit.errors import OptionError, PrefkitError, RecordError, unknown
from prefkit.report import Table
from prefkit.report.cells import plain

Values = NDArray[np.float64]


class Ranked(NamedTuple):
    """A comparison, and by how much each of its responses is ahead of each other one.

    Args:
        comparison: what was ranked.
        margins: `[responses, responses, 2]`: how far the first is ahead of the second where it is shown first, and
            where it is shown second. Rewards know no order: both are their difference.
    """

    comparison: Comparison
    margins: Values


Ranker: TypeAlias = Callable[[Iterable[Comparison], list[RecordError]], Iterator[Ranked]]
"""Ranks the responses of comparisons, and sets aside what it cannot rank."""

Scored: TypeAlias = Callable[[Iterable[Comparison], list[RecordError]], Iterator[tuple[Comparison, Sequence[float]]]]
"""Gives each response of comparisons a score, and sets aside what it cannot score."""


def by_scores(scored: Scored) -> Ranker:
    """A ranker from scores of single responses."""

    def ranked(comparisons: Iterable[Comparison], skipped: list[RecordError]) -> Iterator[Ranked]:
        for comparison, scores in scored(comparisons, skipped):
            values = np.asarray(scores, dtype=np.float64)
            if not np.isfinite(values).all():
                raise RecordError(
                    f"the scores of responses must be finite numbers, got {values.tolist()}",
                    source=comparison.source,
                    line=comparison.line,
                )
            ahead = values[:, None] - values[None]
            yield Ranked(comparison, np.stack([ahead, ahead], -1))

    return ranked


@dataclass(frozen=True)
class Benchmark:
    """A published set and its protocol.

    Args:
        name: on the command line.
        format: of its file, see `comparisons.FORMATS`.
        source: where it was published.
        protocol: what is measured, in words.
        columns: names of the numbers that `row` gives.
        figures: each figure as a statistic of these rows, in the order of the table.
        row: the numbers of one item.
        subset: which subset an item belongs to.
        groups: means over subsets, each with the weights of the subsets; a group of which a subset is not there is
            left out.
        pooled: name of a last line over all items together; None leaves it out.
        order_figures: figures that mean something only for a judge.
        merged: makes items of comparisons, where several belong together.
    """

    name: str
    format: str | None
    source: str
    protocol: str
    columns: tuple[str, ...]
    figures: Mapping[str, Statistic]
    row: Callable[[Ranked, float], Sequence[float]]
    subset: Callable[[Comparison], str]
    groups: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    pooled: str | None = None
    order_figures: tuple[str, ...] = ()
    merged: Callable[[Iterable[Comparison]], Iterator[Comparison]] | None = None


@dataclass(frozen=True)
class BenchmarkResult:
    """What was measured on a benchmark.

    Args:
        benchmark: the protocol.
        model: what was measured.
        lines: figures of each subset and group with 95% intervals over prompts, with the number of items.
        skipped: items that could not be ranked, each with place and reason.
        unread: rows of the file that could not be read as items.
    """

    benchmark: Benchmark
    model: str
    lines: Mapping[str, tuple[int, Mapping[str, Interval]]]
    skipped: tuple[RecordError, ...]
    unread: int = 0

    def table(self) -> Table:
        """One row a subset or group."""
        names = list(next(iter(self.lines.values()))[1])
        rows = [[label, count, *(figures[name] for name in names)] for label, (count, figures) in self.lines.items()]
        count = len(self.skipped) + self.unread
        aside = f"; {count} items set aside" if count else ""
        return Table(["subset", "items", *names], rows, f"{self.model} on {self.benchmark.name}{aside}")

    def to_dict(self) -> dict[str, Any]:
        """The figures as values that JSON holds."""
        return {
            "benchmark": self.benchmark.name,
            "model": self.model,
            "protocol": self.benchmark.protocol,
            "subsets": {
                label: {"items": count, **{name: plain(interval) for name, interval in figures.items()}}
                for label, (count, figures) in self.lines.items()
            },
            "skipped": [str(error) for error in self.skipped],
            "unread": self.unread,
        }


def run_benchmark(
    benchmark: Benchmark | str,
    ranker: Ranker,
    comparisons: Iterable[Comparison],
    *,
    model: str = "model",
    tie_margin: float = 0.0,
    judge: bool = False,
    resamples: int = 1000,
) -> BenchmarkResult:
    """Measure a ranker on a benchmark.

    Args:
        benchmark: one of `BENCHMARKS`, or its name.
        ranker: what is measured.
        comparisons: the benchmark's items.
        model: what the ranker is called in tables.
        tie_margin: margins up to this count as ties where the protocol knows ties.
        judge: the ranker looks at the order in which responses are shown: also tell how far that decides.
        resamples: of the bootstrap.

    Raises:
        OptionError: there is no such benchmark, or tie_margin is negative.
        PrefkitError: nothing could be ranked.
        RecordError: an item is none of the benchmark's.
    """
    if isinstance(benchmark, str):
        if benchmark not in BENCHMARKS:
            raise OptionError(unknown("benchmark", benchmark, BENCHMARKS))
        benchmark = BENCHMARKS[benchmark]
    if not tie_margin >= 0:
        raise OptionError(f"tie_margin must be at least 0, got {tie_margin}")
    skipped: list[RecordError] = []
    rows: list[Sequence[float]] = []
    subsets: list[str] = []
    prompts: dict[str, int] = {}
    clusters: list[int] = []
    items = comparisons if benchmark.merged is None else benchmark.merged(comparisons)
    for ranked in ranker(items, skipped):
        rows.append(benchmark.row(ranked, tie_margin))
        subsets.append(benchmark.subset(ranked.comparison))
        clusters.append(prompts.setdefault(str(ranked.comparison.prompts), len(prompts)))
    if not rows:
        first = f"; first: {skipped[0]}" if skipped else ""
        raise PrefkitError(f"no item of {benchmark.name} could be ranked, {len(skipped)} were set aside{first}")
    table, names, owners = np.array(rows, dtype=np.float64), np.array(subsets), np.array(clusters)
    shown = {name: f for name, f in benchmark.figures.items() if judge or name not in benchmark.order_figures}
    counts = Counter(subsets)
    lines: dict[str, tuple[int, Mapping[str, Interval]]] = {}

    def measure(label: str, weights: Mapping[str, float] | None) -> None:
        """Add a line of the rows of some subsets, each with its weight, or of all together."""
        member = np.ones(len(names), bool) if weights is None else np.isin(names, list(weights))
        coded = np.column_stack([_codes(names, weights), table])[member]
        lines[label] = (
            int(member.sum()),
            {
                name: bootstrap_interval(
                    coded, _weighted(statistic, weights), clusters=owners[member], resamples=resamples
                )
                for name, statistic in shown.items()
            },
        )

    for subset in sorted(counts):
        measure(subset, {subset: 1.0})
    for label, weights in benchmark.groups.items():
        if all(subset in counts for subset in weights):
            measure(label, weights)
    if benchmark.pooled is not None and len(counts) > 1:
        measure(benchmark.pooled, None)
    unread = len({(row.source, row.line) for row in getattr(getattr(comparisons, "skipped", ()), "rows", ())})
    return BenchmarkResult(benchmark, model, lines, tuple(skipped), unread)


def _codes(names: NDArray[Any], weights: Mapping[str, float] | None) -> Values:
    codes = np.zeros(len(names))
    for code, subset in enumerate(weights or ()):
        codes[names == subset] = code
    return codes


def _weighted(statistic: Statistic, weights: Mapping[str, float] | None) -> Statistic:
    """Weighted mean of a statistic over the subsets that the first column tells apart."""
    if weights is None or len(weights) == 1:
        return lambda rows: statistic(rows[:, 1:])

    def mean(rows: Values) -> float:
        # A resample of few items may lack a subset.
        found = [(w, rows[rows[:, 0] == code, 1:]) for code, w in enumerate(weights.values())]
        kept = [(w, statistic(part)) for w, part in found if len(part)]
        return float(sum(w * value for w, value in kept) / sum(w for w, _ in kept))

    return mean


def _column(place: int) -> Statistic:
    return lambda rows: float(rows[:, place].mean())


def _better(comparison: Comparison) -> tuple[int, int]:
    """Places of the better and the worse response of a pair."""
    match comparison.judgement:
        case Winner(index) if len(comparison.responses) == 2:
            return index, 1 - index
    raise RecordError(
        "the benchmark's items are pairs with a better response", source=comparison.source, line=comparison.line
    )


def _orders(ranked: Ranked) -> Values:
    """1, 0, or 0.5 for a tie: whether the better response wins where it is shown first, and where second."""
    better, worse = _better(ranked.comparison)
    wins: Values = np.heaviside(ranked.margins[better, worse], 0.5)
    return wins


def _decided(margins: Values, tie_margin: float) -> int:
    """Verdict of both orders together: each gives a vote, a tie none."""
    votes = np.where(np.abs(margins) <= tie_margin, 0, np.sign(margins))
    return int(np.sign(votes.sum()))


# --- RM-Bench


def _rm_bench_row(ranked: Ranked, tie_margin: float) -> list[float]:
    judgement = ranked.comparison.judgement
    if not isinstance(judgement, Ranking) or judgement.ranks != (0, 0, 0, 1, 1, 1):
        raise RecordError(
            "an item of RM-Bench has 3 chosen and 3 rejected responses, in matching styles",
            source=ranked.comparison.source,
            line=ranked.comparison.line,
        )
    # An equal score is no win; the share over both orders is that of wins.
    wins = (ranked.margins[:3, 3:] > 0).mean(-1)
    upper, lower = np.triu_indices(3, 1), np.tril_indices(3, -1)
    hard, normal, easy = float(wins[upper].mean()), float(wins.diagonal().mean()), float(wins[lower].mean())
    return [easy, normal, hard, (easy + normal + hard) / 3]


def _domain(comparison: Comparison) -> str:
    return str(comparison.extra.get("domain"))


# --- JudgeBench


_KINDS = {
    "mmlu-pro": "knowledge",
    "livebench-reasoning": "reasoning",
    "livebench-math": "mathematics",
    "livecodebench": "coding",
}


def _judgebench_row(ranked: Ranked, tie_margin: float) -> list[float]:
    better, worse = _better(ranked.comparison)
    margins = ranked.margins[better, worse]
    return [float(_decided(margins, tie_margin) > 0), float(np.sign(margins[0]) == np.sign(margins[1]))]


def _kind(comparison: Comparison) -> str:
    source = str(comparison.extra.get("source"))
    return next((kind for start, kind in _KINDS.items() if source.startswith(start)), source)


# --- LLMBar, HHH


def _llmbar_row(ranked: Ranked, tie_margin: float) -> list[float]:
    first, second = _orders(ranked)
    return [(first + second) / 2, float(first == second)]


def _accuracy_row(ranked: Ranked, tie_margin: float) -> list[float]:
    return [float(_orders(ranked).mean())]


def _subset(comparison: Comparison) -> str:
    return str(comparison.extra.get("subset") or comparison.criterion or "all")


_ADVERSARIAL = ("adversarial-Neighbor", "adversarial-GPTInst", "adversarial-GPTOut", "adversarial-Manual")


# --- PandaLM


def _pandalm_items(comparisons: Iterable[Comparison]) -> Iterator[Comparison]:
    """One item of the votes on each pair, which are kept in `extra`; votes of one pair follow one another."""
    held: list[Comparison] = []
    for comparison in comparisons:
        if held and (comparison.source, comparison.line) != (held[0].source, held[0].line):
            yield _pandalm_item(held)
            held = []
        held.append(comparison)
    if held:
        yield _pandalm_item(held)


def _pandalm_item(votes: list[Comparison]) -> Comparison:
    first = votes[0]
    verdicts = [_verdict(vote) for vote in votes]
    (most, count), *rest = Counter(verdicts).most_common()
    # Three different votes have no majority; the authors' set has none left, and here it counts as a tie.
    truth = most if not rest or count > rest[0][1] else 0
    extra = {**first.extra, "truth": truth, "votes": verdicts}
    return Comparison(
        first.prompts, first.responses, first.judgement, id=first.id, extra=extra, source=first.source, line=first.line
    )


def _verdict(vote: Comparison) -> int:
    """1 for the first response, -1 for the second, 0 for a tie."""
    match vote.judgement:
        case Winner(index):
            return 1 - 2 * index
        case Ranking((first, second)):
            return int(np.sign(second - first))
    raise RecordError("a vote of PandaLM is on two responses", source=vote.source, line=vote.line)


def _pandalm_row(ranked: Ranked, tie_margin: float) -> list[float]:
    margins = ranked.margins[0, 1]
    votes = ranked.comparison.extra["votes"]
    truth = ranked.comparison.extra["truth"]
    agreement = float(np.mean([vote == truth for vote in votes]))
    consistent = float(np.sign(margins[0]) == np.sign(margins[1]))
    return [_decided(margins, tie_margin), truth, consistent, agreement]


def _exact(rows: Values) -> float:
    return float((rows[:, 0] == rows[:, 1]).mean())


def _without_ties(rows: Values) -> float:
    """Accuracy on pairs of which the majority preferred a response; a predicted tie is half right."""
    decided = rows[rows[:, 1] != 0]
    return float((0.5 + 0.5 * decided[:, 0] * decided[:, 1]).mean()) if len(decided) else 0.5


def _macro(which: str) -> Statistic:
    """Precision, recall or F1, a mean over the three verdicts; 0 for a verdict that is never given."""

    def figure(rows: Values) -> float:
        found = []
        for verdict in (1, -1, 0):
            given, true = rows[:, 0] == verdict, rows[:, 1] == verdict
            hits = float((given & true).sum())
            precision, recall = hits / max(given.sum(), 1), hits / max(true.sum(), 1)
            f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
            found.append({"precision": precision, "recall": recall, "F1": f1}[which])
        return float(np.mean(found))

    return figure


BENCHMARKS: Mapping[str, Benchmark] = {
    each.name: each
    for each in (
        Benchmark(
            "rm-bench",
            "best_of",
            "Liu et al. 2024, RM-Bench (arXiv 2410.16184)",
            "each chosen response against each rejected one; easy: the chosen one's style is the richer, hard: the "
            "poorer, normal: the same; safety is the mean of its two parts, the total that of chat and safety",
            ("easy", "normal", "hard", "average"),
            {"easy": _column(0), "normal": _column(1), "hard": _column(2), "average": _column(3)},
            _rm_bench_row,
            _domain,
            groups={
                "safety": {"safety-refuse": 0.5, "safety-response": 0.5},
                "chat and safety": {"chat": 0.5, "safety-refuse": 0.25, "safety-response": 0.25},
            },
        ),
        Benchmark(
            "judgebench",
            "judgebench",
            "Tan et al. 2024, JudgeBench (arXiv 2410.12784)",
            "both orders vote; right if the correct answer has the majority, so that contradicting votes are wrong",
            ("right", "consistent"),
            {"accuracy": _column(0), "consistent": _column(1)},
            _judgebench_row,
            _kind,
            pooled="all",
            order_figures=("consistent",),
        ),
        Benchmark(
            "llmbar",
            "llmbar",
            "Zeng et al. 2023, LLMBar (arXiv 2310.07641)",
            "mean accuracy over both orders, and how often they agree; adversarial is the mean of its four parts",
            ("right", "agreement"),
            {"accuracy": _column(0), "agreement": _column(1)},
            _llmbar_row,
            _subset,
            groups={"adversarial": dict.fromkeys(_ADVERSARIAL, 0.25)},
            order_figures=("agreement",),
        ),
        Benchmark(
            "hhh",
            None,
            "Askell et al. 2021, A General Language Assistant as a Laboratory for Alignment (arXiv 2112.00861)",
            "share of pairs in which the better answer is ranked first, ties half",
            ("right",),
            {"accuracy": _column(0)},
            _accuracy_row,
            _subset,
            pooled="all",
        ),
        Benchmark(
            "pandalm",
            "pandalm",
            "Wang et al. 2023, PandaLM (arXiv 2306.05087)",
            "first, second or tie against the majority of three people: accuracy, and precision, recall and F1 as "
            "means over the three; contradicting orders of a judge are a tie",
            ("given", "true", "consistent", "annotator"),
            {
                "accuracy": _exact,
                "precision": _macro("precision"),
                "recall": _macro("recall"),
                "F1": _macro("F1"),
                "without ties": _without_ties,
                "consistent": _column(2),
                "one annotator": _column(3),
            },
            _pandalm_row,
            lambda comparison: "all",
            order_figures=("consistent",),
            merged=_pandalm_items,
        ),
    )
}
"""Every benchmark by name. "one annotator" of PandaLM is how often a single person agrees with the majority that he or
she is part of, which no model can be expected to exceed by much."""
