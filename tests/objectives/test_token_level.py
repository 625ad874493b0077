"""Token-level rewards and masks: against formulas in other words, and against whole-response methods they contain."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefkit.errors import OptionError
from prefkit.objectives import (
    LearnedMask,
    Masked,
    PairScores,
    TokenScores,
    activation_mask,
    make_objective,
    sparsepo_loss,
    sparsity,
    tdpo_loss,
    tdpo_sequence_terms,
    token_terms,
)

LENGTHS = {"chosen": [3, 1, 4], "rejected": [2, 5, 2]}


def tokens(side: str, layers: int = 2, width: int = 5) -> TokenScores:
    generator = torch.Generator().manual_seed(len(side))
    owner = torch.repeat_interleave(torch.arange(3), torch.tensor(LENGTHS[side]))
    count = len(owner)
    policy, ref = -2 * torch.rand(2, count, generator=generator)
    return TokenScores(
        policy.requires_grad_(),
        owner,
        ref_logps=ref,
        kl=torch.rand(count, generator=generator).requires_grad_(),
        layers=torch.randn(count, layers, width, generator=generator),
    )


def scores() -> PairScores:
    sides = {side: tokens(side) for side in LENGTHS}
    totals = {side: t.total(t.policy_logps, 3) for side, t in sides.items()}
    refs = {side: t.total(t.ref_logps, 3) for side, t in sides.items()}
    return PairScores(
        totals["chosen"],
        totals["rejected"],
        refs["chosen"],
        refs["rejected"],
        chosen_tokens=sides["chosen"],
        rejected_tokens=sides["rejected"],
    )


def sums(t: TokenScores) -> tuple[Tensor, Tensor]:
    return t.total(t.policy_logps - t.ref_logps, 3), t.total(t.kl, 3)


@pytest.mark.parametrize(("kind", "weight"), [("tdpo1", 1.0), ("tdpo2", 0.5)])
def test_tdpo_by_hand(kind: str, weight: float) -> None:
    given = scores()
    (m_w, k_w), (m_l, k_l) = sums(given.chosen_tokens), sums(given.rejected_tokens)
    expected = -logsigmoid(0.1 * (m_w - m_l - weight * (k_l - k_w)))
    found = make_objective(kind)(given)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(tdpo_loss(m_w, m_l, k_w, k_l, variant=kind), expected)  # type: ignore[arg-type]
    chosen, rejected = torch.autograd.grad(
        found.sum(), [given.chosen_tokens.kl, given.rejected_tokens.kl], allow_unused=True
    )
    assert rejected.abs().min() > 0
    assert (chosen is None) == (kind == "tdpo2")


def test_gradient_stops_on_the_side_that_is_called_better() -> None:
    """With every label wrong, the other side's divergence takes the gradient."""
    given = scores().swapped()
    found = make_objective("tdpo2")(given)
    chosen, rejected = torch.autograd.grad(
        found.sum(), [given.chosen_tokens.kl, given.rejected_tokens.kl], allow_unused=True
    )
    assert chosen is None
    assert rejected is not None


def test_uniform_masks_give_tdpo1_and_no_divergence_gives_dpo() -> None:
    given = scores()
    torch.testing.assert_close(
        make_objective({"kind": "mapo", "kinds": ["uniform"]})(given), make_objective("tdpo1")(given)
    )
    torch.testing.assert_close(make_objective({"kind": "tdpo2", "alpha": 0})(given), make_objective("dpo")(given))


def sparse(**options: Any) -> tuple[Any, Masked]:
    objective = make_objective({"kind": "sparsepo", "dropout": 0.0, **options})
    objective.reward.build(2, 5)
    return objective, objective.reward


@pytest.mark.parametrize("mode", ["common", "independent"])
def test_objective_equals_the_function_of_arrays(mode: str) -> None:
    given = scores()
    objective, reward = sparse(l1_reward=0.01, l1_kl=0.03, mask_mode=mode, seed=3)
    arrays: list[Tensor] = []
    for side in (given.chosen_tokens, given.rejected_tokens):
        masks = reward.masks(side, 3)
        columns = (side.policy_logps - side.ref_logps, side.kl, *masks, torch.ones_like(side.kl))
        arrays.extend(side.table(column, 3)[0] for column in columns)
    expected = sparsepo_loss(*arrays, l1_reward=0.01, l1_kl=0.03, mask_mode=mode)  # type: ignore[arg-type, call-arg]
    torch.testing.assert_close(objective(given), expected)


def test_noise_leaves_the_norm_of_masks_alone() -> None:
    given = scores()
    plain, _ = sparse()
    noisy, reward = sparse(l1_reward=0.2, l1_kl=0.2, noise={"kind": "conservative", "flip_rate": 0.25})
    norm = 0.2 * sum(side.total(reward.masks(side, 3)[0], 3) for side in (given.chosen_tokens, given.rejected_tokens))
    expected = 0.75 * plain(given) + 0.25 * plain(given.swapped()) + norm
    torch.testing.assert_close(noisy(given), expected)


def test_masks_learn_and_figures_tell_their_sparsity() -> None:
    objective, _ = sparse(l1_reward=0.1)
    objective(scores()).sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in objective.parameters())
    assert objective.figures()["chosen_sparsity"].tolist() == [0.0] * 3
    assert objective.weight_groups()[0][0] == {"weight_decay": 0.01}


def test_dead_masks_warn_once(caplog: pytest.LogCaptureFixture) -> None:
    objective, reward = sparse()
    with torch.no_grad():
        reward.learned[0].mixer.fill_(-1.0)  # type: ignore[union-attr, operator]  # a mask's mixer
    for step in (1, 2):
        objective(scores())
        objective.advance(step)
    assert caplog.text.count("the mask is 0 at every token of step 1") == 1


@pytest.mark.parametrize(
    "kind", ["simple_all", "simple_last", "ml_all", "ml_last", "random", "binary_all", "binary_last"]
)
@pytest.mark.parametrize("activation", ["relu", "resc"])
def test_masks_of_every_kind(kind: str, activation: str) -> None:
    mask = LearnedMask(kind, 2, 5, layer_activation=activation, mixer_activation=activation)  # type: ignore[arg-type]
    side = tokens("chosen")
    found = mask(side.layers, side.response, 3)
    assert found.shape == (8,)
    assert (found >= 0).all()
    if kind.startswith("binary"):
        assert set(found.tolist()) <= {0.0, 1.0}
        assert not found.requires_grad


def test_activation_mask_by_hand() -> None:
    activation = torch.tensor([[[1.0, 3.0], [4.0, 4.0], [0.0, 0.0], [9.0, 9.0]], [[5.0, 5.0]] * 4])
    response = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 0]])
    found = activation_mask({"resid": [activation], "mlp": [2 * activation]}, response)
    assert found.tolist() == [[0.5, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]]
    half = activation_mask({"resid": [activation]}, response, kinds=["resid", "uniform"])
    assert half[0].tolist() == [0.75, 1.0, 0.5, 0.0]


def test_single_token_counts_one() -> None:
    found = activation_mask({"mlp": [torch.randn(1, 3, 4)]}, torch.tensor([[0, 1, 0]]), mapping="sigmoid")
    assert found.tolist() == [[0.0, 1.0, 0.0]]


def test_sparsity_counts_response_tokens() -> None:
    mask = torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    assert sparsity(mask, torch.tensor([[0, 1, 1, 1]])).tolist() == pytest.approx([200 / 3])


def test_peaked_references_give_finite_divergences() -> None:
    logits = torch.tensor([[[1e4, 0.0, -1e4], [0.0, 0.0, 0.0]]])
    policy = torch.zeros_like(logits).requires_grad_()
    _, kl, _ = tdpo_sequence_terms(policy, logits, torch.tensor([[-100, 2]]))
    kl.sum().backward()
    torch.testing.assert_close(kl, torch.tensor([3.0]).log())
    assert torch.isfinite(policy.grad).all()


ONES = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_on_reward": False, "mask_on_kl": False}, "are both off; use dpo or tdpo1"),
        ({"l1_reward": -0.1}, "l1_reward must be at least 0"),
        ({"chosen_response_mask": torch.tensor([[1.0, 1, 1], [0, 0, 0]])}, "row 1 has no response token"),
        (
            {"chosen_reward_mask": torch.ones(2, 4)},
            "chosen_reward_mask must have the shape of the response mask, (2, 3), got (2, 4)",
        ),
        ({"rejected_reward_mask": -ONES}, "rejected_reward_mask must hold no negative value and no NaN"),
        ({"rejected_reward_mask": ONES * torch.nan}, "rejected_reward_mask must hold no negative value and no NaN"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str) -> None:
    sides = [
        f"{side}_{name}"
        for side in ("chosen", "rejected")
        for name in ("ratios", "kls", "reward_mask", "kl_mask", "response_mask")
    ]
    with pytest.raises(OptionError, match=re.escape(message)):
        sparsepo_loss(**{**dict.fromkeys(sides, ONES), **change})


def test_further_mistakes_are_named() -> None:
    labels = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(OptionError, match="policy_logits must be logits"):
        token_terms(torch.zeros(2, 3), torch.zeros(2, 3), labels)
    with pytest.raises(OptionError, match="ref_logits and labels must have one batch size and length"):
        token_terms(torch.zeros(2, 3, 4), torch.zeros(2, 2, 4), labels)
    with pytest.raises(OptionError, match="unknown kind of mask 'simple'"):
        LearnedMask("simple", 2, 5)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="unknown kind of activation 'residual'"):
        activation_mask({}, ONES, kinds=["residual"])  # type: ignore[list-item]
    with pytest.raises(OptionError, match="no activations of kind 'mlp' are given; there are: none"):
        activation_mask({}, ONES, kinds=["mlp"])
    with pytest.raises(OptionError, match="unknown variant 'tdpo3'"):
        tdpo_loss(*[torch.zeros(2)] * 4, variant="tdpo3")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"objective\.mask"):
        make_objective({"kind": "sparsepo", "mask": "simple"})
    with pytest.raises(OptionError, match="are both off"):
        make_objective({"kind": "sparsepo", "mask_on_reward": False, "mask_on_kl": False})


def test_reference_scored_beforehand_is_not_enough() -> None:
    side = tokens("chosen")
    given = TokenScores(side.policy_logps, side.response, ref_logps=side.ref_logps)
    whole = PairScores(torch.zeros(3), torch.zeros(3), chosen_tokens=given, rejected_tokens=given)
    with pytest.raises(OptionError, match="needs the reference's whole distribution at each token"):
        make_objective("tdpo1")(whole)
