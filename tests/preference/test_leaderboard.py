from __future__ import annotations

import numpy as np
import pytest

from prefkit.preference import BradleyTerry


def model() -> BradleyTerry:
    rows = [["a", "b"]] * 40 + [["b", "c"]] * 40 + [["a", "c"]] * 4
    outcomes = [1] * 30 + [0] * 8 + [0.5] * 2 + [1] * 24 + [0] * 16 + [1, 1, 1, 0]
    return BradleyTerry().fit(rows, outcomes)


def test_standings_hold_records_and_ordered_strengths() -> None:
    board = model().leaderboard()
    assert [s.item for s in board.standings] == ["a", "b", "c"]
    top = board.standings[0]
    assert (top.rank, top.wins, top.ties, top.losses) == (1, 33, 2, 9)
    assert sum(s.mean for s in board.standings) == pytest.approx(0)
    assert sum(s.wins for s in board.standings) == sum(s.losses for s in board.standings)


def test_ranks_overlap_where_differences_are_in_doubt() -> None:
    first, second, third = model().leaderboard().standings
    assert (first.best_rank, first.worst_rank) == (1, 1)
    assert (second.best_rank, second.worst_rank) == (2, 3) == (third.best_rank, third.worst_rank)


def test_higher_confidence_is_wider() -> None:
    narrow, wide = model().leaderboard(0.5).standings[0], model().leaderboard(0.99).standings[0]
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def test_elo_gives_400_points_for_odds_of_ten() -> None:
    fitted = BradleyTerry().fit([["a", "b"]] * 11, [1] * 10 + [0])
    first, second = fitted.leaderboard().elo().standings
    assert first.mean - second.mean == pytest.approx(400)
    assert first.mean + second.mean == pytest.approx(2000)


def test_table_and_plot_show_every_item() -> None:
    board = model().leaderboard().elo()
    assert [row[1] for row in board.table("t").rows] == ["a", "b", "c"]
    assert [row[0] for row in board.plot().data.rows] == ["a", "b", "c"]
    assert [row[0] for row in board.plot(most=1).data.rows] == ["a"]


def test_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(0)
    truth = np.array([1.0, 0.3, -0.3, -1.0])
    covered = []
    for _ in range(60):
        X = np.array([rng.permutation(4)[:2] for _ in range(200)])
        y = rng.random(200) < 1 / (1 + np.exp(truth[X[:, 1]] - truth[X[:, 0]]))
        for standing in BradleyTerry().fit(X, y).leaderboard(0.9).standings:
            covered.append(standing.low < truth[standing.item] < standing.high)
    assert 0.84 < np.mean(covered) < 0.96
