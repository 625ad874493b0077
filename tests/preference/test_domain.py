"""Domain features and the rewards on them: what they read, refuse and write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefkit.comparisons import Comparison, Winner
from prefkit.errors import OptionError, PrefkitError, RecordError
from prefkit.preference import (
    OPINION_SUMMARY,
    BradleyTerry,
    DomainFeatures,
    DomainReward,
    domain_features,
    save_preference_model,
)

SCORES = dict.fromkeys(OPINION_SUMMARY, 2.5)


def test_features_are_ordered_by_name_and_scaled() -> None:
    domain = DomainFeatures(("a", "b"), low=1, high=3)
    assert domain.vectors([{"b": 1, "a": 3}]).tolist() == [[1.0, 0.0]]
    assert domain.naive_mean([{"b": None, "a": 2}]).tolist() == [0.5]


@pytest.mark.parametrize(
    ("scores", "problem"),
    [
        ({**SCORES, "tone": 1.0}, "scores:1: field 'tone': unknown feature 'tone'"),
        ({k: v for k, v in SCORES.items() if k != "relevance"}, "field 'relevance': the feature is absent"),
        ({**SCORES, "relevance": 6}, r"field 'relevance': must lie in \[0, 5\], got 6"),
        ({**SCORES, "relevance": None}, "field 'relevance': the value is missing: impute it"),
        ({**SCORES, "relevance": float("nan")}, "field 'relevance': the value is missing"),
        ({**SCORES, "relevance": "3"}, "field 'relevance': must be a number, got '3'"),
    ],
)
def test_bad_features_are_named(scores: dict[str, object], problem: str) -> None:
    with pytest.raises(RecordError, match=problem):
        DomainFeatures(OPINION_SUMMARY).vectors([scores])  # type: ignore[list-item]


def test_bad_domains() -> None:
    with pytest.raises(OptionError, match="different names, at least one"):
        DomainFeatures(("a", "a"))
    with pytest.raises(OptionError, match="low < high"):
        DomainFeatures(("a",), low=1, high=1)
    with pytest.raises(OptionError, match="unknown feature 'b'"):
        DomainFeatures(("a",), functions={"b": lambda prompt, response: 0.0})
    with pytest.raises(OptionError, match="unknown function of a feature 'word'; did you mean 'words'"):
        domain_features(["word"], ["word"])
    with pytest.raises(RecordError, match="all features are missing"):
        DomainFeatures(("a",)).naive_mean([{"a": None}])


def pair(number: int, better: str = "a long good answer") -> Comparison:
    return Comparison((f"question {number}",), (better, "bad"), Winner(0), source="f", line=number)


def test_a_users_own_function_is_a_feature_but_cannot_be_saved(tmp_path: Path) -> None:
    domain = DomainFeatures(("good",), high=1, functions={"good": lambda prompt, response: "good" in response})
    reward = DomainReward(domain).fit([pair(1), pair(2)])
    assert reward.score([pair(3)]) == 1.0
    assert reward.explain()["good"] > 0
    with pytest.raises(OptionError, match="feature 'good' is computed by a function of your own"):
        reward.save(tmp_path)


def test_a_saved_domain_reward_annotates_texts(tmp_path: Path) -> None:
    reward = DomainReward(domain_features(["words"], ["words"], {"words": (0, 10)})).fit([pair(1), pair(2)])
    reward.save(tmp_path / "m")
    loaded = DomainReward.load(tmp_path / "m")
    (one,), (other,) = (list(each.annotate([pair(3)])) for each in (reward, loaded))
    assert one.extra["rewards"] == other.extra["rewards"]
    assert one.extra["rewards"][0] > one.extra["rewards"][1]


def test_features_that_are_not_there_are_errors_or_set_aside() -> None:
    reward = DomainReward(DomainFeatures(("tone",)))
    with pytest.raises(RecordError, match="f:1: field 'tone': response 0: the feature is neither given nor computed"):
        reward.fit([pair(1)])
    skipped: list[RecordError] = []
    with pytest.raises(PrefkitError, match="no comparison has a preferred response and features; first: f:1"):
        reward.fit([pair(1)], skipped)
    short = Comparison(("q",), ("a", "b"), Winner(0), extra={"features": [{"tone": 1}]}, source="f", line=9)
    with pytest.raises(RecordError, match="f:9: field 'features': one mapping of features a response is needed, 2"):
        reward.fit([short])


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    domain = domain_features(["words"], ["words"], {"words": (0, 10)})
    DomainReward(domain).fit([pair(1), pair(2)]).save(tmp_path)
    about = json.loads((tmp_path / "domain.json").read_text())
    settings = json.loads((tmp_path / "preference.json").read_text())
    wide = {**settings, "attributes": {**settings["attributes"], "n_features_in_": 9}}
    (tmp_path / "preference.json").write_text(json.dumps(wide))
    with pytest.raises(PrefkitError, match="is damaged"):
        DomainReward.load(tmp_path)
    save_preference_model(BradleyTerry(ridge=1.0).fit([[[1.0], [0.0]]]), tmp_path)
    with pytest.raises(OptionError, match="holds no domain reward: its model is a BradleyTerry"):
        DomainReward.load(tmp_path)
    (tmp_path / "domain.json").write_text(json.dumps({**about, "names": 3}))
    with pytest.raises(OptionError, match="holds no domain reward"):
        DomainReward.load(tmp_path)
    with pytest.raises(OptionError, match="holds no domain reward"):
        DomainReward.load(tmp_path / "nowhere")
