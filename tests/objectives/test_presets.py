from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from prefkit.errors import OptionError
from prefkit.objectives import PRESETS, PairScores, make_objective
from prefkit.objectives.presets import CATALOGUE

BAD: list[tuple[Any, str]] = [
    ({"kind": "rdpo", "flip_rate": 0.7}, "objective.flip_rate must be less than 0.5, got 0.7"),
    ({"kind": "rdpo", "flip_rate": 0.5}, "objective.flip_rate must be less than 0.5, got 0.5"),
    ({"kind": "dpo", "beta": 0}, "objective.beta must be greater than 0"),
    ({"kind": "dpo", "beta": -0.1}, "objective.beta must be greater than 0"),
    ({"kind": "dpo", "beta": float("inf")}, "objective.beta"),
    ({"kind": "dpo", "beta": "large"}, "objective.beta: input should be a valid number"),
    ({"kind": "kto", "undesirable_weight": -1}, "objective.undesirable_weight must be at least 0"),
    ({"kind": "dpo", "betta": 0.1}, "unknown option of objective 'betta'; did you mean 'beta'?"),
    ({"kind": "dpoo"}, "objective.kind: unknown objective 'dpoo'; did you mean 'dpo'?"),
    ("rpdo", "objective.kind: unknown objective 'rpdo'; did you mean 'rdpo'?"),
    ({"beta": 0.1}, "objective.kind is required"),
    (
        {"kind": "dpo", "flip_rate": 0.1},
        "objective.flip_rate does not apply to 'dpo', whose options are: auxiliary, beta",
    ),
    ({"kind": "simpo", "divergence": "alpha"}, "objective.divergence does not apply to 'simpo'"),
    ({"kind": "ipo", "gamma": 1.0}, "objective.gamma does not apply to 'ipo'"),
    ({"kind": "kto", "noise": {"kind": "robust"}}, "objective.noise does not apply to 'kto'"),
    ({"kind": "sft", "beta": 0.1}, "objective.beta does not apply to 'sft'"),
    ({"kind": "dpo", "divergence": "kl"}, "objective.divergence"),
    ({"kind": "dpo", "divergence_alpha": 0.3}, "divergence_alpha applies only to `divergence: alpha`"),
    ({"kind": "dpo", "noise": {"kind": "robust", "flip_rate": 0.6}}, "objective.noise.flip_rate must be less than 0.5"),
    ({"kind": "dpo", "noise": {"kind": "robust", "rate": 0.1}}, "unknown option of objective.noise 'rate'"),
    (
        {"kind": "dpo", "noise": {"kind": "rubust"}},
        "objective.noise.kind: unknown noise 'rubust'; did you mean 'robust'?",
    ),
    ({"kind": "dpo", "noise": {"flip_rate": 0.1}}, "objective.noise.kind is required; known: conservative, robust"),
    ({"kind": "dpo", "link": "logit"}, "objective.link: unknown link 'logit'"),
    ({"kind": "dpo", "regularisers": {"kind": "sft"}}, "objective.regularisers must be a list"),
    (
        {"kind": "dpo", "regularisers": [{"kind": "sft", "weight": -1}]},
        "objective.regularisers.0.weight must be at least 0",
    ),
    (
        {"kind": "rdpo", "noise": {"kind": "robust"}, "flip_rate": 0.1},
        "objective.flip_rate does not apply to 'rdpo'",
    ),
]


@pytest.mark.parametrize(("config", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_configurations_are_explained(config: Any, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        make_objective(config)
    assert message in str(caught.value)


def test_place_of_the_configuration_is_named() -> None:
    with pytest.raises(OptionError, match=r"^stages\.1\.beta must be"):
        make_objective({"kind": "dpo", "beta": 0}, where="stages.1")


def test_large_flip_rate_warns() -> None:
    with pytest.warns(UserWarning, match=r"flip_rate of 0\.45 leaves little signal"):
        make_objective({"kind": "rdpo", "flip_rate": 0.45})


@pytest.mark.parametrize("kind", PRESETS)
def test_every_default_belongs_to_a_part(kind: str) -> None:
    preset = PRESETS[kind]
    parts = [CATALOGUE[role][name] for role, name in preset.parts.items() if isinstance(name, str)]
    known = {name for part in parts for name in part.options.model_fields}
    assert set(preset.options) <= known


@pytest.mark.parametrize("kind", PRESETS)
def test_parts_have_the_defaults_of_their_functions(kind: str) -> None:
    """A part with no options given and its function called without any are the same thing."""
    for parts in CATALOGUE.values():
        for part in parts.values():
            defaults = getattr(part.function, "__kwdefaults__", None) or {}
            for name, field in part.options.model_fields.items():
                if name in defaults:
                    assert field.default == defaults[name], (part.name, name)


SCORES = PairScores(*(torch.tensor([x]) for x in (-1.0, -4.0, -2.0, -3.0)))


def test_parts_can_be_replaced() -> None:
    same = make_objective({"kind": "dpo", "link": "hinge", "beta": 0.05})
    assert same(SCORES) == make_objective("slic")(SCORES)
    nested = make_objective({"kind": "dpo", "noise": {"kind": "robust", "flip_rate": 0.2}})
    assert nested(SCORES) == make_objective({"kind": "rdpo", "flip_rate": 0.2})(SCORES)
    hinge = make_objective({"kind": "simpo", "link": "hinge"})
    assert repr(hinge) == "simpo(reward=average_log_prob, link=hinge(beta=0.1, gamma=1.0))"
    named = make_objective({"kind": "dpo", "noise": "robust", "flip_rate": 0.2})
    assert named(SCORES) == nested(SCORES)


def test_an_option_reaches_its_part() -> None:
    target = make_objective({"kind": "simpo", "reward": "log_prob", "beta": 1.0, "gamma": 3.0})
    assert target(SCORES).item() == pytest.approx(0.693147, abs=1e-6)
    without = make_objective({"kind": "cpo", "regularisers": []})
    assert without(SCORES).item() == pytest.approx(0.554355, abs=1e-6)  # log(1 + exp(-0.3))


def test_divergence_changes_the_reward() -> None:
    objective = make_objective({"kind": "dpo", "beta": 1.0, "divergence": "forward_kl"})
    chosen, rejected = objective.rewards(SCORES)
    assert chosen.item() == pytest.approx(1 - 0.367879, abs=1e-6)  # 1 - exp(-1)
    assert rejected.item() == pytest.approx(1 - 2.718282, abs=1e-6)  # 1 - exp(1)


def test_documentation_lists_every_method_and_part() -> None:
    page = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text()
    for name in [*PRESETS, *(part for parts in CATALOGUE.values() for part in parts)]:
        assert f"`{name}`" in page, name
