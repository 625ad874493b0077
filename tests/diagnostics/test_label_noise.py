from __future__ import annotations

import numpy as np
import pytest

from prefkit.diagnostics import count_style, estimate_label_noise, word_overlap
from prefkit.diagnostics.surface import FEATURES, StyleCounts
from prefkit.errors import OptionError, PrefkitError


def labelled(flips: float, rows: int = 1000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(rows, 8))
    first = generator.random(rows) < 1 / (1 + np.exp(-features @ np.full(8, 1.5)))
    flipped = generator.random(rows) < flips
    return features * np.where(first ^ flipped, 1, -1)[:, None], flipped


@pytest.mark.parametrize("flips", [0.0, 0.1, 0.25])
def test_the_share_of_flipped_labels_lies_in_its_interval(flips: float) -> None:
    features, flipped = labelled(flips)
    found = estimate_label_noise(features)
    assert found.noise.low - 0.01 <= flips <= found.noise.high + 0.01
    assert found.noise.mean == pytest.approx(flips, abs=0.06)
    if flips:
        assert found.confidence[flipped].mean() < found.confidence[~flipped].mean() - 0.2


def test_suspicion_falls_on_who_gives_wrong_labels() -> None:
    (good, _), (bad, _) = labelled(0.0, 500), labelled(0.4, 500, seed=1)
    found = estimate_label_noise(np.concatenate([good, bad]), ["ann"] * 500 + ["eve"] * 500)
    assert found.by_group["eve"][0] > found.by_group["ann"][0] + 0.1
    assert found.by_group["ann"][1] == 500


def test_features_that_say_nothing_are_told() -> None:
    noise = np.random.default_rng(0).normal(size=(400, 5))
    found = estimate_label_noise(noise)
    assert found.accuracy.low < 0.55
    assert found.noise.high > 0.4


def test_bad_input_is_explained() -> None:
    with pytest.raises(PrefkitError, match="needs at least 200 pairs, got 3"):
        estimate_label_noise(np.ones((3, 2)))
    with pytest.raises(PrefkitError, match="finite numbers"):
        estimate_label_noise(np.full((300, 2), np.nan))
    with pytest.raises(OptionError, match="folds must be at least 2"):
        estimate_label_noise(np.ones((300, 2)), folds=1)


def test_style_by_hand() -> None:
    text = "Sorry, I can't.\n\n# Title\n- **one**: `x = 12`\n2) two?!"
    found = dict(zip(FEATURES, count_style(text), strict=True))
    assert found["list items"] == 2
    assert found["line breaks"] == 4
    assert found["bold or headings"] == 2
    assert (found["code"], found["digits"], found["questions"], found["exclamations"]) == (2, 3, 1, 1)
    assert found["apologies and refusals"] == 2
    assert found["first person"] == 1


def test_winners_by_style() -> None:
    counts = StyleCounts()
    for one, two in (("a b c", "a"), ("a b", "a"), ("a", "a b"), ("a", "b")):
        counts.add(count_style(one), count_style(two))
    bias = counts.biases()["words"]
    assert (bias.wins.mean, bias.wins.n, bias.differ) == (pytest.approx(2 / 3), 3, 0.75)
    assert "code" not in counts.biases()


@pytest.mark.parametrize(
    ("one", "two", "share"),
    [("a b c", "a b c", 1), ("a b c d", "a b c e", 3 / 5), ("a a b", "a b b", 2 / 4), ("a", "a b c", 0), ("", "", 1)],
)
def test_overlap_by_hand(one: str, two: str, share: float) -> None:
    assert word_overlap(one, two) == share
