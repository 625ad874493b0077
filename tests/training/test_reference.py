from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.training.tiny_domain import LetterScorer, comparisons

from prefkit.errors import OptionError
from prefkit.objectives import ResponseScores
from prefkit.training import TrainingData, prepare, reference_scores

ROWS = 7


@pytest.fixture
def data(tmp_path: Path) -> TrainingData:
    return prepare(LetterScorer(), comparisons(ROWS), form="pairs", cache=tmp_path)


def passes(
    data: TrainingData, seed: int = 0, batch_size: int = 3, tokens: bool = False, precision: str = "fp32"
) -> int:
    """How often the reference was asked."""
    scorer, cache = LetterScorer(seed, precision=precision), data.encodings.path.parent
    reference_scores(scorer, data, cache=cache, batch_size=batch_size, tokens=tokens)
    return scorer.reference_passes


def stored(data: TrainingData) -> Path:
    [path] = data.encodings.path.parent.glob("reference-*.arrow")
    return path


def test_scores_are_those_of_each_response_on_its_own(data: TrainingData, tmp_path: Path) -> None:
    scorer = LetterScorer()
    rows = reference_scores(scorer, data, cache=tmp_path, batch_size=3, tokens=True)
    assert len(rows) == ROWS
    for row, record in zip(rows, comparisons(ROWS), strict=True):
        tokens = []
        for place, response in enumerate(record.responses):
            encoded = {
                "prompts": [list(map(ord, str(record.prompts[0])))],
                "responses": [list(map(ord, str(response)))],
            }
            alone = scorer.reference(scorer.collate([encoded]))
            assert row["logps"][place] == pytest.approx(float(alone.policy_logps), rel=1e-5)
            assert alone.tokens is not None
            tokens += alone.tokens.policy_logps.tolist()
        assert row["tokens"] == pytest.approx(tokens, rel=1e-5)


def test_kept_until_weights_precision_or_tokens_change(data: TrainingData) -> None:
    assert passes(data) == 3
    assert passes(data) == 0
    assert passes(data, batch_size=2) == 0
    assert passes(data, seed=1) == 3
    assert passes(data, precision="bf16") == 3
    assert passes(data, tokens=True) == 3
    assert passes(data) == passes(data, seed=1) == passes(data, tokens=True) == 0


def test_other_data_are_scored_anew(data: TrainingData, tmp_path: Path) -> None:
    assert passes(data) == 3
    assert passes(prepare(LetterScorer(), comparisons(ROWS - 1), form="pairs", cache=tmp_path)) == 2
    assert passes(prepare(LetterScorer(longest=63), comparisons(ROWS), form="pairs", cache=tmp_path)) == 3


@pytest.mark.parametrize("damage", ["truncated", "empty", "one bit", "no seal"])
def test_a_damaged_file_is_computed_again(data: TrainingData, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    assert passes(data) == 3
    path = stored(data)
    good = path.read_bytes()
    match damage:
        case "truncated":
            path.write_bytes(good[: len(good) // 2])
        case "empty":
            path.write_bytes(b"")
        case "one bit":
            path.write_bytes(good[:500] + bytes([good[500] ^ 1]) + good[501:])
        case "no seal":
            path.with_name(f"{path.name}.seal.json").unlink()
    assert passes(data) == 3
    assert "damaged and will be computed again" in caplog.text
    assert path.read_bytes() == good
    assert passes(data) == 0


def test_a_reference_killed_half_way_leaves_nothing_to_trust(data: TrainingData, tmp_path: Path) -> None:
    scorer = LetterScorer()
    whole, scorer.reference = scorer.reference, lambda inputs: 1 / 0  # type: ignore[method-assign]  # a crash
    with pytest.raises(ZeroDivisionError):
        reference_scores(scorer, data, cache=tmp_path, batch_size=3)
    assert not list(tmp_path.glob("reference-*.arrow"))
    scorer.reference = whole  # type: ignore[method-assign]  # as it was
    assert len(reference_scores(scorer, data, cache=tmp_path, batch_size=3)) == ROWS


def test_dropout_is_off_and_comes_back(data: TrainingData, tmp_path: Path) -> None:
    class Own(LetterScorer):
        """Whose reference is the policy."""

        def reference(self, inputs: dict[str, torch.Tensor]) -> ResponseScores:  # type: ignore[override]  # a mapping
            assert not self.training
            assert not torch.is_grad_enabled()
            return self(inputs)

    scorer = Own()
    reference_scores(scorer, data, cache=tmp_path, batch_size=3)
    assert scorer.training


def test_tokens_that_a_scorer_does_not_give_are_an_error(data: TrainingData, tmp_path: Path) -> None:
    scorer = LetterScorer()
    scorer.reference = lambda inputs: ResponseScores(torch.zeros(6), torch.ones(6))  # type: ignore[assignment,method-assign]
    with pytest.raises(OptionError, match="scores of single tokens"):
        reference_scores(scorer, data, cache=tmp_path, batch_size=3, tokens=True)
