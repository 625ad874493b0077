from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prefkit.errors import OptionError
from prefkit.objectives import (
    PRESETS,
    DemonstrationScores,
    PairObjective,
    PairScores,
    Part,
    Stateful,
    TokenScores,
    logistic,
    make_objective,
)

ELSEWHERE = ("lcpo", "madpo", "reward_model_margin", "smpo", "beta_dpo", "osp", "tdpo1", "tdpo2", "sparsepo", "mapo")
"""Methods with state, or with more data than pairs, which have tests of their own."""
SORTED = {"aot", "aot_unpaired"}  # losses of quantiles, not of pairs
# Auxiliary terms have tests of their own: soft labels do not touch them, and some need further texts.
PAIRWISE = [
    name
    for name, preset in PRESETS.items()
    if preset.form == "pairs" and name not in (*SORTED, *ELSEWHERE) and "auxiliary" not in preset.parts
]


def tokens(policy: list[float], ref: list[float], lengths: list[int]) -> TokenScores:
    """Tokens that share the log-probability of their response."""
    owner = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    shares = [torch.tensor(logps) / torch.tensor(lengths) for logps in (policy, ref)]
    return TokenScores(shares[0][owner], owner, ref_logps=shares[1][owner])


SCORES = PairScores(
    policy_chosen_logps=torch.tensor([-10.0, -12.0, -30.0]),
    policy_rejected_logps=torch.tensor([-14.0, -11.0, -20.0]),
    ref_chosen_logps=torch.tensor([-11.0, -12.5, -28.0]),
    ref_rejected_logps=torch.tensor([-13.0, -12.0, -21.0]),
    chosen_lengths=torch.tensor([5, 6, 10]),
    rejected_lengths=torch.tensor([7, 4, 8]),
    chosen_tokens=tokens([-10.0, -12.0, -30.0], [-11.0, -12.5, -28.0], [5, 6, 10]),
    rejected_tokens=tokens([-14.0, -11.0, -20.0], [-13.0, -12.0, -21.0], [7, 4, 8]),
)


@pytest.mark.parametrize("kind", PAIRWISE)
def test_soft_labels_interpolate_between_the_orientations(kind: str) -> None:
    objective = make_objective(kind)
    forward, swapped = objective(SCORES), objective(SCORES.swapped())
    p = torch.tensor([1.0, 0.0, 0.25])
    torch.testing.assert_close(objective(replace(SCORES, probabilities=p)), p * forward + (1 - p) * swapped)


@pytest.mark.parametrize("kind", PAIRWISE)
def test_weights_multiply(kind: str) -> None:
    objective, weights = make_objective(kind), torch.tensor([0.0, 1.0, 2.5])
    torch.testing.assert_close(objective(replace(SCORES, weights=weights)), weights * objective(SCORES))


def test_strengths_multiply_on_their_scale() -> None:
    objective = make_objective({"kind": "dpo", "weights": {"kind": "strength", "scale": 2.0}})
    assert objective.needs == {"reference", "strengths"}
    weighted = objective(replace(SCORES, strengths=torch.tensor([0.0, 2.0, 3.0])))
    torch.testing.assert_close(weighted, torch.tensor([0.0, 1.0, 1.5]) * make_objective("dpo")(SCORES))


def test_noise_corrects_regularisers_too() -> None:
    objective = make_objective(
        {"kind": "simpo", "regularisers": ["sft"], "noise": {"kind": "conservative", "flip_rate": 0.2}}
    )
    plain = make_objective("simpo")
    expected = 0.8 * (plain(SCORES) - SCORES.policy_chosen_logps) + 0.2 * (
        plain(SCORES.swapped()) - SCORES.policy_rejected_logps
    )
    torch.testing.assert_close(objective(SCORES), expected)


def test_implicit_rewards_are_scaled_and_detached() -> None:
    scores = replace(SCORES, policy_chosen_logps=SCORES.policy_chosen_logps.clone().requires_grad_())
    chosen, rejected = make_objective({"kind": "dpo", "beta": 0.5}).rewards(scores)
    assert chosen.tolist() == [0.5, 0.25, -1.0]
    assert rejected.tolist() == [-0.5, 0.5, 0.5]
    assert not chosen.requires_grad


NEEDS = {kind: {"reference"} for kind in (*PAIRWISE, *SORTED, "bco", "plackett_luce", "all_pairs")} | {
    "gpo": {"reference", "ratings"},
    "jpo": {"reference", "joint"},
    "ld_dpo": {"reference", "tokens"},
    "simpo": set(),
    "cpo": set(),
    "orpo": set(),
    "slic_hf": set(),
    "reward_model": {"rewards"},
    "reward_model_margin": {"rewards", "margins"},
    "sft": set(),
    "kto": {"reference", "kl"},
    "spo": {"reference", "tokens", "states"},
    "tdpo1": {"tokens", "token_kl"},
    "tdpo2": {"tokens", "token_kl"},
    "sparsepo": {"tokens", "token_kl", "layers"},
    "mapo": {"tokens", "token_kl", "layers"},
    "ift": {"tokens", "temporal_residual"},
    "vpo": {"reference"},
    "osp": {"reference", "strengths"},
    "mapl": {"reference"},
    "rationale_dpo": {"reference"},
    "rationale_orpo": set(),
    "rationale_simpo": set(),
    "lcpo": {"reference"},
    "madpo": {"reference", "margins"},
    "smpo": {"reference", "margins"},
    "beta_dpo": {"reference"},
    "calibration": {"ratings"},
    "plr": {"reference", "ratings"},
    "tpo": {"reference", "ratings", "tokens", "states", "steps"},
}


@pytest.mark.parametrize("kind", PRESETS)
def test_needs(kind: str) -> None:
    assert make_objective(kind).needs == NEEDS[kind]


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("dpo", "ref_chosen_logps"),
        ("rdpo", "ref_rejected_logps"),
        ("simpo", "chosen_lengths"),
        ("ipo_avg", "rejected_lengths"),
        ("orpo", "chosen_lengths"),
        ("ld_dpo", "rejected_tokens"),
        ("length_dpo", "chosen_lengths"),
        ("aot", "ref_chosen_logps"),
    ],
)
def test_missing_data_is_named(kind: str, field: str) -> None:
    with pytest.raises(OptionError, match=f"objective '{kind}' needs {field}, which these PairScores lack"):
        make_objective(kind)(replace(SCORES, **{field: None}))


def test_scores_of_another_form_are_refused() -> None:
    with pytest.raises(OptionError, match="objective 'dpo' takes PairScores, got DemonstrationScores"):
        make_objective("dpo")(DemonstrationScores(torch.zeros(2), torch.ones(2)))


class Reliabilities(nn.Module):
    """A correction with state: the reliability of each annotator."""

    takes = ("annotators",)
    needs = frozenset({"annotators"})

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("eta", torch.full((count,), 0.9))

    def forward(self, losses: Tensor, swapped: Tensor, annotators: Tensor) -> Tensor:
        eta = self.get_buffer("eta")[annotators]
        return eta * losses + (1 - eta) * swapped


def stateful() -> PairObjective:
    reward = Part("difference", lambda policy: policy, ("policy_logps",))
    return PairObjective(reward, Part("logistic", logistic), noise=Reliabilities(2), name="mine")


def test_state_of_a_part_is_saved_restored_and_used() -> None:
    objective, other = stateful(), stateful()
    scores = replace(SCORES, annotators=torch.tensor([0, 1, 1]))
    before = objective(scores)
    objective.noise.eta[1] = 0.6
    assert objective(scores)[0] == before[0]
    assert (objective(scores)[1:] != before[1:]).all()
    other.load_state_dict(objective.state_dict())
    torch.testing.assert_close(other(scores), objective(scores))
    assert objective.needs == {"annotators"}
    with pytest.raises(OptionError, match="objective 'mine' needs annotators"):
        objective(SCORES)


class Counter(Stateful):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, *tensors: Tensor) -> Tensor:
        self.get_buffer("count").add_(1)
        return torch.ones(3)


def test_each_state_is_saved_once_whatever_its_role() -> None:
    part = Part("counter", Counter)
    reward = Part("difference", lambda policy: policy, ("policy_logps",))
    objective = PairObjective(
        reward, Part("logistic", logistic), weights=part.made(), regularisers=[part.made()], auxiliary=[part.made()]
    )
    objective(SCORES)
    assert len(objective.stateful) == 3
    assert sorted(objective.state_dict()) == ["terms.0.count", "terms.1.count", "weights.count"]
    other = copy.deepcopy(objective)
    assert [state.get_buffer("count").item() for state in other.stateful] == [1, 1, 1]
    objective(SCORES)
    other.load_state_dict(objective.state_dict())
    assert [state.get_buffer("count").item() for state in other.stateful] == [2, 2, 2]


@pytest.mark.parametrize("kind", PRESETS)
def test_objectives_can_be_copied_and_sent_to_other_processes(kind: str) -> None:
    objective = make_objective(kind)
    sent = pickle.loads(pickle.dumps(objective))
    assert repr(sent) == repr(objective) == repr(copy.deepcopy(objective))


def test_repr_names_the_parts() -> None:
    objective: Any = make_objective({"kind": "cpo", "noise": {"kind": "robust", "flip_rate": 0.2}})
    assert repr(objective) == (
        "cpo(reward=log_prob, link=logistic(beta=0.1, gamma=0.0), noise=robust(flip_rate=0.2), "
        "regularisers=(sft(weight=1.0),))"
    )
