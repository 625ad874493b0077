from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from prefkit.errors import PrefkitError
from prefkit.preference import BradleyTerry, PlackettLuce, load_preference_model, save_preference_model


def test_leaderboards_survive(tmp_path: Path) -> None:
    model = BradleyTerry(ties="davidson").fit([["a", "b"], ["b", "c"], ["c", "a"], ["a", "c"]], [1, 0.5, 1, 1])
    loaded = load_preference_model(save_preference_model(model, tmp_path))
    assert loaded.leaderboard() == model.leaderboard()
    assert loaded.difference("a", "b") == model.difference("a", "b")
    ranked = PlackettLuce(ridge=0.1).fit([["a", "b", "c"], ["b", "a"]])
    loaded = load_preference_model(save_preference_model(ranked, tmp_path))
    np.testing.assert_array_equal(loaded.predict_proba([["a", "c"]]), ranked.predict_proba([["a", "c"]]))
    assert loaded.leaderboard().table().rows == ranked.leaderboard().table().rows


def test_large_models_are_saved_before_their_covariance_is_known(tmp_path: Path) -> None:
    n = 1600
    ring = np.stack([np.arange(n), (np.arange(n) + 1) % n], axis=1)
    model = BradleyTerry(ridge=0.1).fit(np.concatenate([ring, ring]), np.repeat([1.0, 0.0], n))
    loaded = load_preference_model(save_preference_model(model, tmp_path))
    np.testing.assert_allclose(loaded.standard_errors_, model.standard_errors_)


def test_damaged_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PrefkitError, match="holds no preference model"):
        load_preference_model(tmp_path)
    save_preference_model(BradleyTerry().fit([["a", "b"]] * 2, [1, 0]), tmp_path)
    settings = tmp_path / "preference.json"
    written = json.loads(settings.read_text())
    settings.write_text(json.dumps({**written, "kind": "BradleyTery"}))
    with pytest.raises(PrefkitError, match="unknown kind of preference model 'BradleyTery'; did you mean"):
        load_preference_model(tmp_path)
    settings.write_text("{")
    with pytest.raises(PrefkitError, match="is damaged"):
        load_preference_model(tmp_path)
    (tmp_path / "preference.safetensors").write_bytes(b"nothing")
    settings.write_text(json.dumps(written))
    with pytest.raises(PrefkitError, match="is damaged"):
        load_preference_model(tmp_path)


def test_names_that_are_no_json_are_refused(tmp_path: Path) -> None:
    model = BradleyTerry().fit(np.array([[b"a", b"b"]] * 2, dtype=object), [1, 0])
    with pytest.raises(PrefkitError, match="must be text or numbers"):
        save_preference_model(model, tmp_path)
