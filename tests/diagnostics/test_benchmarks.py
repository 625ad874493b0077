"""Benchmarks: a scorer by length has published reference figures; protocols on items worked out by hand."""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from prefkit.comparisons import Comparison, Ranking, RecordError, Winner, load_comparisons
from prefkit.diagnostics import BENCHMARKS, BenchmarkResult, Ranked, by_scores, run_benchmark
from prefkit.errors import OptionError, PrefkitError

DATA = Path(__file__).parents[3] / "shared" / "data"


def by_length(
    comparisons: Iterable[Comparison], skipped: list[RecordError], sign: float = 1.0
) -> Iterator[tuple[Comparison, list[float]]]:
    for comparison in comparisons:
        texts = [r if isinstance(r, str) else r[0]["content"] for r in comparison.responses]
        yield comparison, [sign * len(text) for text in texts]


@pytest.mark.parametrize(
    ("name", "file", "wanted"),
    [
        # What the notes of each set say of its longer responses.
        ("judgebench", "judgebench/judgebench", {("all", "accuracy"): 0.460}),
        ("hhh", "hhh_alignment/hhh", {("all", "accuracy"): 0.633}),
        (
            "llmbar",
            "llmbar/llmbar",
            {("natural", "accuracy"): 0.565, ("adversarial-Neighbor", "accuracy"): 0.119},
        ),
    ],
)
def test_longer_responses_are_right_as_often_as_published(
    name: str, file: str, wanted: dict[tuple[str, str], float]
) -> None:
    path = DATA / f"{file}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"the benchmark is not at {path}")
    result = run_benchmark(name, by_scores(by_length), load_comparisons(str(path)), resamples=20)
    for (line, figure), value in wanted.items():
        assert result.lines[line][1][figure].mean == pytest.approx(value, abs=0.01), line


def test_length_on_rm_bench_is_as_published() -> None:
    path = DATA / "rm_bench" / "rm_bench.jsonl.gz"
    if not path.exists():
        pytest.skip(f"the benchmark is not at {path}")
    items = list(load_comparisons(str(path)))
    longer, shorter = (
        run_benchmark("rm-bench", by_scores(partial(by_length, sign=sign)), items, resamples=5) for sign in (1, -1)
    )
    counts = {name: longer.lines[name][0] for name in ("chat", "safety-refuse", "safety-response")}
    assert counts == {"chat": 129, "safety-refuse": 284, "safety-response": 157}

    def over_items(result: BenchmarkResult, figure: str) -> float:
        return sum(counts[name] * result.lines[name][1][figure].mean for name in counts) / sum(counts.values())

    # The published figures are over all items, and count equal lengths half; the protocol counts them as no win.
    for figure, value in (("easy", 0.899), ("normal", 0.366), ("hard", 0.083)):
        assert (over_items(longer, figure) + 1 - over_items(shorter, figure)) / 2 == pytest.approx(value, abs=1e-3)
    result = longer
    parts = [result.lines[name][1]["hard"].mean for name in ("safety-refuse", "safety-response")]
    assert result.lines["safety"][1]["hard"].mean == pytest.approx(np.mean(parts))


def judged(margins: dict[str, tuple[float, float]]) -> object:
    """A judge that is ahead by these margins for the first response, where it is shown first and second."""

    def ranked(comparisons: Iterable[Comparison], skipped: list[RecordError]) -> Iterator[Ranked]:
        for comparison in comparisons:
            first, second = margins[str(comparison.id)]
            table = np.zeros((2, 2, 2))
            table[0, 1] = first, second
            table[1, 0] = -second, -first
            yield Ranked(comparison, table)

    return ranked


def item(name: str, winner: int, **extra: str) -> Comparison:
    return Comparison((name,), ("a", "b"), Winner(winner), id=name, extra=extra)


def test_contradicting_orders_are_wrong_on_judgebench() -> None:
    items = [item("agrees", 0, source="mmlu-pro-law"), item("position", 0, source="mmlu-pro-law")]
    judge = judged({"agrees": (1.0, 2.0), "position": (3.0, -0.5)})
    result = run_benchmark("judgebench", judge, items, judge=True, resamples=10)
    assert result.lines["knowledge"][1]["accuracy"].mean == 0.5
    assert result.lines["knowledge"][1]["consistent"].mean == 0.5


def test_a_tie_in_one_order_leaves_the_other_to_decide_on_judgebench() -> None:
    judge = judged({"x": (0.0, -2.0)})
    result = run_benchmark("judgebench", judge, [item("x", 1, source="livecodebench")], judge=True, resamples=10)
    assert result.lines["coding"][1]["accuracy"].mean == 1.0


def test_llmbar_takes_the_mean_over_orders_and_counts_agreement() -> None:
    items = [item("agrees", 0, subset="natural"), item("position", 1, subset="natural")]
    judge = judged({"agrees": (1.0, 2.0), "position": (3.0, -0.5)})
    result = run_benchmark("llmbar", judge, items, judge=True, resamples=10)
    figures = result.lines["natural"][1]
    assert (figures["accuracy"].mean, figures["agreement"].mean) == (0.75, 0.5)
    assert "adversarial" not in result.lines


def votes(name: str, line: int, *said: int) -> list[Comparison]:
    judgements = {1: Winner(0), 2: Winner(1), 0: Ranking((0, 0))}
    return [
        Comparison((name,), ("a", "b"), judgements[vote], id=name, annotator=f"annotator{k}", source="f", line=line)
        for k, vote in enumerate(said)
    ]


def test_pandalm_compares_three_outcomes_with_the_majority() -> None:
    data = [*votes("p", 1, 1, 1, 2), *votes("q", 2, 0, 0, 0), *votes("r", 3, 2, 2, 2), *votes("s", 4, 2, 1, 2)]
    judge = judged({"p": (1.0, 1.0), "q": (1.0, -1.0), "r": (2.0, 1.0), "s": (-1.0, -1.0)})
    figures = run_benchmark("pandalm", judge, data, judge=True, resamples=10).lines["all"][1]
    # first, tie, first, second given; first, tie, second, second true.
    assert figures["accuracy"].mean == 0.75
    assert figures["precision"].mean == pytest.approx((1 / 2 + 1 + 1) / 3)
    assert figures["recall"].mean == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert figures["F1"].mean == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert figures["without ties"].mean == pytest.approx(2 / 3)
    assert figures["one annotator"].mean == pytest.approx((2 / 3 + 1 + 1 + 2 / 3) / 4)


def test_small_margins_are_ties_of_pandalm() -> None:
    data = votes("p", 1, 0, 0, 1)
    score = by_scores(lambda comparisons, skipped: ((c, [0.1, 0.0]) for c in comparisons))
    assert run_benchmark("pandalm", score, data, resamples=5).lines["all"][1]["accuracy"].mean == 0
    tied = run_benchmark("pandalm", score, data, tie_margin=0.2, resamples=5)
    assert tied.lines["all"][1]["accuracy"].mean == 1


def test_equal_scores_are_no_win_on_rm_bench() -> None:
    styled = Comparison(("p",), tuple("abcdef"), Ranking((0, 0, 0, 1, 1, 1)), extra={"domain": "chat"})
    score = by_scores(lambda comparisons, skipped: ((c, [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]) for c in comparisons))
    figures = run_benchmark("rm-bench", score, [styled], resamples=5).lines["chat"][1]
    assert [figures[name].mean for name in ("easy", "normal", "hard")] == [1.0, 0.0, 0.0]


def test_what_is_no_item_is_refused() -> None:
    score = by_scores(by_length)
    with pytest.raises(RecordError, match="f:7: an item of RM-Bench has 3 chosen and 3 rejected"):
        run_benchmark("rm-bench", score, [Comparison(("p",), ("a", "b"), Winner(0), source="f", line=7)])
    with pytest.raises(OptionError, match="unknown benchmark 'rmbench'; did you mean 'rm-bench'"):
        run_benchmark("rmbench", score, [])
    with pytest.raises(PrefkitError, match="no item of hhh could be ranked, 0 were set aside"):
        run_benchmark("hhh", score, [])
    with pytest.raises(OptionError, match="tie_margin must be at least 0"):
        run_benchmark("hhh", score, [], tie_margin=-1)
    nan = by_scores(lambda comparisons, skipped: ((c, [float("nan"), 0.0]) for c in comparisons))
    with pytest.raises(RecordError, match="scores of responses must be finite numbers"):
        run_benchmark("hhh", nan, [item("x", 0)])


def test_every_benchmark_says_what_it_measures() -> None:
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.name == name
        assert benchmark.protocol
        assert "arXiv" in benchmark.source
        assert set(benchmark.order_figures) <= set(benchmark.figures)
