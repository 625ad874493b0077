from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from prefkit.errors import OptionError, PrefkitError
from prefkit.preference import BradleyTerry, IdealPoints, Projector, choose_prototypes


def world(people: int = 12, each: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray]:
    """Two groups with opposite ideal points; the group of each person is the parity of the number."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(people), each)
    ideal = np.where(who[:, None] % 2, 2.0, -2.0) * np.array([1.0, 0.0, 0.0])
    X = rng.normal(size=(len(who), 2, 3))
    distance = np.linalg.norm(X - ideal[:, None], axis=2)
    return X, (distance[:, 0] < distance[:, 1]).astype(float), [f"p{i}" for i in who], rng.normal(size=(len(who), 3))


X, Y, WHO, PROMPTS = world()
TEST = world(seed=1)
FEW = world(people=2, each=8, seed=2)


@pytest.fixture(scope="module")
def two() -> IdealPoints:
    return IdealPoints(loss="logistic").fit(X, Y, annotators=WHO)


def test_two_prototypes_serve_two_tastes_and_one_does_not(two: IdealPoints) -> None:
    one = IdealPoints(prototypes=1).fit(X, Y, annotators=WHO)
    assert two.score(TEST[0], TEST[1], annotators=TEST[2]) > 0.9
    assert one.score(TEST[0], TEST[1], annotators=TEST[2]) < 0.75
    assert BradleyTerry().fit(X, Y).score(TEST[0], TEST[1]) < 0.75


def test_people_of_one_group_have_like_mixtures(two: IdealPoints) -> None:
    heavy = two.mixtures_.argmax(axis=1)
    assert len(set(heavy[::2])) == 1 == len(set(heavy[1::2]))
    assert heavy[0] != heavy[1]
    np.testing.assert_allclose(two.mixtures_.sum(axis=1), 1)


@pytest.mark.parametrize(
    "options",
    [
        {"mixing": "f(P)w"},
        {"mixing": "Pw"},
        {"mixing": "|f(P)|w", "score_type": "dist_normalization"},
        {"score_type": "angle", "loss": "logistic"},
        {"score_type": "norm"},
        {"loss": "smooth_hinge", "projector": "mlp1-tanh-dropout0"},
        {"projector": "mlp1-relu-dropout0-residual", "balance": True, "bound": 5.0},
        {"projector": "mlp1-relu-dropout05-batchnorm", "batch_size": 60, "width": 16, "steps": 300},
        {"partition": True, "temperature": 0.5},
    ],
    ids=lambda options: ", ".join(map(str, options.values())),
)
def test_every_variant_learns_and_its_reward_gives_its_scores(options: dict[str, Any]) -> None:
    model = IdealPoints(**options).fit(X, Y, annotators=WHO)
    # Batch norms see people and options in one stream, and learn least.
    least = 0.65 if "batchnorm" in model.projector else 0.75
    assert model.score(TEST[0], TEST[1], annotators=TEST[2]) > least
    rewards = [model.reward(TEST[0][:, side], annotators=TEST[2]) for side in (0, 1)]
    decisions = model.decision_function(TEST[0], annotators=TEST[2])
    np.testing.assert_allclose(rewards[0] - rewards[1], decisions, atol=1e-3)


def test_prompts_decide_in_variant_b() -> None:
    rng = np.random.default_rng(3)
    who = np.repeat(np.arange(10), 40)
    sign = np.where(who % 2, 1.0, -1.0)
    prompts, options = rng.normal(size=(400, 3)), rng.normal(size=(400, 2, 3))
    y = (np.einsum("nsd,nd->ns", options, prompts) * sign[:, None]).argmin(axis=1).astype(float)
    names = [f"p{i}" for i in who]
    model = IdealPoints(variant="B").fit(options, y, annotators=names, prompts=prompts)
    assert model.score(options, y, annotators=names, prompts=prompts) > 0.8
    one = IdealPoints(variant="B", prototypes=1).fit(options, y, annotators=names, prompts=prompts)
    assert one.score(options, y, annotators=names, prompts=prompts) < 0.65


def test_new_people_are_learned_from_a_few_comparisons_and_nothing_else_changes(two: IdealPoints) -> None:
    model = IdealPoints(loss="logistic").fit(X, Y, annotators=WHO)
    before = model.decision_function(X, annotators=WHO)
    names = [f"new {name}" for name in FEW[2]]
    with pytest.raises(PrefkitError, match=r"row 0: annotator 'new p0' is unknown .* fit_annotators"):
        model.predict(FEW[0], annotators=names)
    model.fit_annotators(FEW[0], FEW[1], annotators=names)
    np.testing.assert_array_equal(model.decision_function(X, annotators=WHO), before)
    test = world(people=2, seed=4)
    assert model.score(test[0], test[1], annotators=[f"new {name}" for name in test[2]]) > 0.85
    # Those who are known already are learned anew.
    model.fit_annotators(FEW[0], FEW[1], annotators=FEW[2], start="normal")
    assert len(model.annotators_) == 14 == len(set(model.annotators_))


def test_without_annotators_the_mean_person_judges(two: IdealPoints) -> None:
    mean = two.mixtures_.mean(axis=0)
    np.testing.assert_allclose(two.decision_function(X), two.decision_function(X, weights=mean), atol=1e-6)


def test_ties_and_soft_labels_are_shared() -> None:
    y = np.where(np.arange(len(Y)) % 3, Y, 0.5)
    assert IdealPoints().fit(X, y, annotators=WHO).score(TEST[0], TEST[1], annotators=TEST[2]) > 0.85


def test_the_number_of_prototypes_is_found() -> None:
    model = IdealPoints(loss="logistic", steps=150)
    count, figures = choose_prototypes(model, X, Y, annotators=WHO, candidates=(1, 2, 3), folds=3)
    assert count == 2
    assert [figure.prototypes for figure in figures] == [1, 2, 3]
    assert figures[0].log_likelihood < figures[1].log_likelihood - 0.1
    assert figures[1].accuracy > 0.85


def test_projector_forms() -> None:
    assert len(Projector("mlp0", 3, 5).layers) == 1
    deep = Projector("mlp2-gelu-dropout5", 3, 5)
    assert [type(layer).__name__ for layer in deep.layers] == ["Linear", "Dropout", "GELU"] * 2 + ["Linear"]
    assert deep.layers[1].p == 0.5
    assert Projector("mlp1-relu-dropout0-nobias", 3, 5).layers[0].bias is None
    x = torch.ones(2, 3)
    residual = Projector("mlp0-residual", 3, 3)
    torch.testing.assert_close(residual(x), residual.layers(x) + x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: IdealPoints().fit(X, Y), "give annotators, who judged each row"),
        (lambda: IdealPoints().fit(X, Y, annotators=WHO[:3]), r"\(360 rows\), got 3 names"),
        (lambda: IdealPoints().fit(X, Y, annotators=[None, *WHO[1:]]), "row 0: the annotator is missing"),
        (lambda: IdealPoints().fit(X, Y, annotators=["a"] * len(X)), "all comparisons are by one annotator, 'a'"),
        (
            lambda: IdealPoints().fit(X, Y, np.arange(len(X)) >= 30, annotators=WHO),
            "annotator 'p0' has no judgement of positive weight",
        ),
        (lambda: IdealPoints().fit([["a", "b"]], annotators=["p"]), "ideal points lie among features"),
        (lambda: IdealPoints(prototypes=0).fit(X, Y, annotators=WHO), "prototypes must be at least 1, got 0"),
        (lambda: IdealPoints(variant="C").fit(X, Y, annotators=WHO), "unknown variant 'C'"),
        (lambda: IdealPoints(loss="hing").fit(X, Y, annotators=WHO), "did you mean 'hinge'"),
        (lambda: IdealPoints(variant="B").fit(X, Y, annotators=WHO), "variant B needs prompts"),
        (lambda: IdealPoints().fit(X, Y, annotators=WHO, prompts=PROMPTS), "variant A reads no prompts"),
        (lambda: IdealPoints(projector="mlp").fit(X, Y, annotators=WHO), "projector must have the form"),
        (
            lambda: IdealPoints(projector="mlp1-residual", width=4).fit(X, Y, annotators=WHO),
            "a residual projector keeps the width: got 3 features and width 4",
        ),
        (lambda: choose_prototypes(IdealPoints(), X, Y, annotators=WHO, folds=1), "at least 2 folds"),
        (
            lambda: choose_prototypes(IdealPoints(), X[:2], Y[:2], annotators=["a", "b"]),
            "no annotator made two comparisons",
        ),
    ],
)
def test_bad_input_is_refused(call: Any, message: str) -> None:
    with pytest.raises((OptionError, PrefkitError), match=message):
        call()


def test_bad_mixtures_are_refused(two: IdealPoints) -> None:
    with pytest.raises(OptionError, match="at least 0 and sum to 1"):
        two.reward(X[:, 0], weights=[0.5, 0.6])
    with pytest.raises(OptionError, match="a mixture needs 2 weights, got 3"):
        two.reward(X[:, 0], weights=[0.5, 0.25, 0.25])
    with pytest.raises(OptionError, match="annotators or weights, not both"):
        two.predict(X, annotators=WHO, weights=[0.5, 0.5])
    with pytest.raises(OptionError, match="start"):
        two.fit_annotators(X, Y, annotators=WHO, start="one")
