from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prefkit import diffusion as d
from prefkit.comparisons import Ranking, Winner
from prefkit.errors import OptionError, PrefkitError
from prefkit.objectives import make_objective
from prefkit.training import TrainingOptions, fit
from tests.diffusion import digits


def darkness(images: Tensor, captions: Sequence[str]) -> Tensor:
    return -images.mean((1, 2, 3))


def test_a_scorer_relabels_and_its_scores_go_along() -> None:
    data = digits.comparisons(5)
    found = list(d.Rescored(data, darkness, side=8))
    assert [each.judgement for each in found] == [Winner(1)] * 5
    for each in found:
        assert each.extra["rewards"][1] > each.extra["rewards"][0]
    kept = list(d.Rescored(data, darkness, order="label", side=8))
    assert [each.judgement for each in kept] == [Winner(0)] * 5
    assert kept[0].extra["rewards"] == found[0].extra["rewards"]


def test_equal_scores_make_the_second_the_winner_and_ties_of_people_stay() -> None:
    def equal(images: Tensor, captions: Sequence[str]) -> Tensor:
        return torch.zeros(len(images))

    one, tied = digits.comparisons(2)
    tied = replace(tied, judgement=Ranking((0, 0)))
    found = list(d.Rescored([one, tied], equal))
    assert [each.judgement for each in found] == [Winner(1), Ranking((0, 0))]
    with pytest.raises(PrefkitError, match="tells no images apart"):
        _ = d.Rescored([one], equal).score_range


def test_what_cannot_be_scored_is_listed_and_images_are_scored_once() -> None:
    calls = []

    def counted(images: Tensor, captions: Sequence[str]) -> Tensor:
        calls.append(len(images))
        return torch.tensor([float("nan"), 0.0]) if len(calls) == 2 else darkness(images, captions)

    scored = d.Rescored(digits.comparisons(3), counted, side=8)
    assert [len(list(scored)) for _ in range(2)] == [2, 2]
    assert calls == [2, 2, 2]
    (bad,) = scored.skipped
    assert (bad.line, bad.field) == (2, "responses")
    low, high = scored.score_range
    assert low < high


def test_smoothed_labels_of_a_scorer_align_images(tmp_path: Path) -> None:
    scored = d.Rescored(digits.comparisons(192), darkness, side=8)
    low, high = scored.score_range
    objective = make_objective({"kind": "smpo", "beta": 2000.0, "score_range": high - low})
    scorer = digits.scorer({"latents": "renoise", "inversion": {"steps": 3}})
    before = digits.drawn(scorer.denoiser, 100).mean()
    options = TrainingOptions(epochs=3, batch_size=32, learning_rate=3e-4, progress=False, save_every=0)
    fit(scorer, scored, objective, output=tmp_path / "run", options=options, cache=tmp_path / "c")
    assert digits.drawn(scorer.denoiser, 100).mean() < before


def test_win_rate_counts_ties_half_and_resamples_captions() -> None:
    images, others = torch.tensor([1.0, 2.0, 0.0, 3.0]), torch.tensor([0.0, 2.0, 1.0, 0.0])
    first, second = (values.reshape(4, 1, 1, 1).expand(4, 3, 2, 2) for values in (images, others))
    found = d.win_rate_of(lambda x, _: x.mean((1, 2, 3)), first, second, ["a", "a", "b", "b"])
    assert found.rate.mean == pytest.approx(2.5 / 4)
    assert found.gain.mean == pytest.approx(3 / 4)
    assert [row[0] for row in found.table("x").rows] == ["win rate", "gain in score"]
    with pytest.raises(OptionError, match="each caption needs an image of either model"):
        d.win_rate_of(darkness, first, second, ["a"])
