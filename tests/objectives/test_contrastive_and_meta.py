"""Contrastive terms, meta-learning steps, advantages."""

import math

import pytest
import torch

from prefkit.errors import OptionError, PrefkitError
from prefkit.objectives import (
    Advantages,
    choice_loss,
    contrastive_inputs,
    gae,
    group_advantage,
    limited_trajectory_pg,
    meta_step,
    metarm_difference,
    ppo_losses,
    reward_model_loss,
    simcse_loss,
    sinkhorn_codes,
    swav_loss,
    token_rewards,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equal_views_of_orthogonal_inputs() -> None:
    # cos is 1 with the twin and 0 with the other: -log(e^20 / (e^20 + 1)).
    loss = simcse_loss(torch.eye(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64), tau=0.05)
    torch.testing.assert_close(loss, torch.full_like(loss, math.log1p(math.exp(-20))))


def test_codes_use_clusters_evenly_and_have_no_gradient() -> None:
    scores = normal(12, 3).requires_grad_()
    codes = sinkhorn_codes(scores, iterations=200, epsilon=0.5)
    assert not codes.requires_grad
    torch.testing.assert_close(codes.sum(1), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(codes.sum(0), torch.full((3,), 4.0, dtype=torch.float64), atol=1e-4, rtol=0)
    assert torch.isfinite(sinkhorn_codes(1e6 * scores, epsilon=1e-3)).all()


def test_gradients_of_contrastive_terms() -> None:
    s, t, centres = (normal(*shape, seed=k).requires_grad_() for k, shape in enumerate([(4, 3), (4, 3), (2, 3)]))
    assert torch.autograd.gradcheck(lambda a, b: simcse_loss(a, b, tau=0.5), (s, t))
    codes = swav_loss(s, t, centres)
    # With the codes held, the loss is a cross-entropy whose gradient can be checked.
    loss = codes.losses.sum()
    (slope,) = torch.autograd.grad(loss, centres)
    units = torch.nn.functional.normalize
    held = lambda c: (  # noqa: E731
        -(codes.codes_s * (units(t, dim=1) @ units(c, dim=1).T / 0.1).log_softmax(1)).sum()
        - (codes.codes_t * (units(s, dim=1) @ units(c, dim=1).T / 0.1).log_softmax(1)).sum()
    )
    torch.testing.assert_close(slope, torch.autograd.grad(held(centres), centres)[0])


def test_bad_contrastive_input() -> None:
    with pytest.raises(OptionError, match="tau must be greater than 0"):
        simcse_loss(normal(2, 2), normal(2, 2), tau=0)
    with pytest.raises(OptionError, match="two views of the same inputs"):
        simcse_loss(normal(2, 2), normal(3, 2))
    with pytest.raises(OptionError, match="centres must be as wide as the views"):
        swav_loss(normal(2, 2), normal(2, 2), normal(2, 3))
    with pytest.raises(OptionError, match="epsilon must be above 0"):
        sinkhorn_codes(normal(2, 2), epsilon=0)
    with pytest.raises(OptionError, match="unknown view 'pairs'; did you mean 'pair'"):
        contrastive_inputs(normal(2, 2), normal(2, 2), "pairs")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="states of one shape"):
        contrastive_inputs(normal(2, 2), normal(2, 3))


def test_spread_of_equal_rewards_has_no_gradient_and_lies_at_one_half() -> None:
    scores = torch.ones(1, 3, dtype=torch.float64, requires_grad=True)
    spread = metarm_difference(scores, normaliser="k_k_minus_1")
    assert float(spread.detach()) == 0.5
    assert torch.autograd.grad(spread.sum(), scores)[0].abs().max() == 0


def test_meta_steps() -> None:
    chosen, rejected, meta = normal(5, 3), normal(5, 3, seed=1), normal(2, 4, 3, seed=2)
    weights = {"w": normal(3, seed=3)}
    loss = lambda w: reward_model_loss(chosen @ w["w"], rejected @ w["w"]).mean()  # noqa: E731
    spread = lambda w: metarm_difference(meta @ w["w"]).mean()  # noqa: E731
    plain = meta_step(weights, loss, spread, eta=0.0, alpha=0.1)
    at = weights["w"].clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss({"w": at}), at)
    torch.testing.assert_close(plain.weights["w"], weights["w"] - 0.1 * slope)
    up = meta_step(weights, loss, spread, eta=0.1, alpha=0.1)
    assert float(spread(up.adapted)) > float(up.difference)
    # Second order: a finite difference of L(w + eta grad J(w)).
    second = meta_step(weights, loss, spread, eta=0.1, alpha=1.0, order=2)
    ahead = lambda w: float(meta_step({"w": w}, loss, spread, eta=0.1, alpha=0.0).loss)  # noqa: E731
    step = 1e-5 * torch.eye(3, dtype=torch.float64)
    numeric = torch.tensor([(ahead(weights["w"] + s) - ahead(weights["w"] - s)) / 2e-5 for s in step])
    torch.testing.assert_close(weights["w"] - second.weights["w"], numeric.double(), atol=1e-7, rtol=1e-5)


def test_meta_steps_of_a_module_leave_it_as_it_is() -> None:
    model = torch.nn.Linear(3, 1)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    call = torch.func.functional_call
    step = meta_step(
        dict(model.named_parameters()),
        lambda w: call(model, w, (torch.ones(4, 3),)).mean(),
        lambda w: metarm_difference(call(model, w, (torch.arange(6.0).reshape(2, 3),)).T).mean(),
        eta=0.1,
        alpha=0.1,
    )
    assert set(step.weights) == set(before)
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters())


def test_bad_meta_input() -> None:
    with pytest.raises(PrefkitError, match="at least 2 responses"):
        metarm_difference(normal(3, 1))
    with pytest.raises(PrefkitError, match="finite numbers"):
        metarm_difference(torch.tensor([[0.0, math.nan]]))
    with pytest.raises(OptionError, match="unknown normaliser"):
        metarm_difference(normal(1, 2), normaliser="k")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="eta and alpha must be at least 0"):
        meta_step({}, lambda w: normal(1), lambda w: normal(1), eta=-1.0, alpha=0.1)


def test_group_advantages() -> None:
    found = group_advantage(torch.tensor([[1.0, 3.0], [2.0, 2.0]]))
    assert found.tolist() == [[-1.0, 1.0], [0.0, 0.0]]
    # Rounding of the mean of equal numbers must not blow up.
    assert group_advantage(torch.full((7,), 0.1)).abs().max() == 0
    with pytest.raises(PrefkitError, match="at least one score"):
        group_advantage(torch.zeros(2, 0))


def test_choices_by_index() -> None:
    loss = choice_loss(torch.tensor([2.0, 2.0]), torch.tensor([0.0, 0.0]), torch.tensor([0, 1]))
    assert loss.tolist() == pytest.approx([math.log1p(math.exp(-2)), math.log1p(math.exp(2))])
    with pytest.raises(OptionError, match="preferred must hold the index of a response"):
        choice_loss(torch.zeros(1), torch.zeros(1), torch.tensor([2]))


ONES = torch.ones(1, 3, dtype=torch.float64)


def test_gae_with_both_factors_one_is_the_return_less_the_value() -> None:
    rewards, values = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.5, 0.5, 0.5]])
    found = gae(values, rewards, ONES, gamma=1.0, lam=1.0)
    assert found.advantages.tolist() == [[5.5, 4.5, 2.5]]
    assert found.returns.tolist() == [[6.0, 5.0, 3.0]]


def test_what_stands_in_padding_does_not_matter() -> None:
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    clean = gae(torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[1.0, 1.0, 0.0]]), mask)
    dirty = gae(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[1.0, 1.0, 9.0]]), mask)
    assert torch.equal(clean.advantages, dirty.advantages)
    assert torch.equal(clean.returns, dirty.returns)


def test_the_score_stands_at_the_last_token() -> None:
    logps, ref = torch.tensor([[-1.0, -2.0, 0.0]]), torch.tensor([[-2.0, -1.0, 0.0]])
    mask, score = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([10.0])
    assert token_rewards(logps, ref, mask, score, kl_beta=1.0).tolist() == [[-1.0, 11.0, 0.0]]
    assert token_rewards(logps, ref, mask, score, kl_beta=1.0, kl_mode="abs").tolist() == [[-1.0, 9.0, 0.0]]
    assert token_rewards(logps, ref, mask, score, kl_beta=1.0, kl_mode="square").tolist() == [[-0.5, 9.5, 0.0]]


def test_an_unchanged_policy_has_the_loss_of_its_advantages() -> None:
    logps, values = -ONES, torch.zeros_like(ONES)
    estimated = Advantages(torch.tensor([[1.0, 2.0, 3.0]]).double(), torch.tensor([[1.0, 1.0, 1.0]]).double())
    losses = ppo_losses(logps, logps, values, values, estimated, ONES)
    assert (float(losses.policy), float(losses.value)) == (-2.0, 0.5)
    # A ratio far above 1 earns no more than 1 + clip where the advantage is positive.
    far = ppo_losses(logps + 5, logps, values, values, estimated, ONES, clip=0.2)
    assert float(far.policy) == pytest.approx(-2.4)


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda: gae(ONES, ONES, 0 * ONES), "row 0 of the mask has no token"),
        (lambda: gae(ONES, ONES[:, :2], ONES), "of one shape"),
        (lambda: gae(ONES, ONES, ONES, gamma=2), "gamma and lam must lie in"),
        (lambda: gae(ONES, ONES, ONES, mode="x"), "unknown mode"),  # type: ignore[arg-type]
        (lambda: token_rewards(ONES, ONES, ONES, ONES[:, 0], kl_mode="x"), "unknown kl_mode"),  # type: ignore[arg-type]
        (lambda: limited_trajectory_pg(ONES, ONES, ONES[:, 0], 0.0, supervised_weight=1.5), "supervised_weight must"),
        (lambda: limited_trajectory_pg(ONES, ONES, ONES, 0.0), "each response needs one score"),
        (lambda: ppo_losses(ONES, ONES, ONES, ONES, Advantages(ONES, ONES), ONES, clip=0), "clip must be greater"),
    ],
)
def test_bad_trajectories(call: object, problem: str) -> None:
    with pytest.raises(PrefkitError, match=problem):
        call()  # type: ignore[operator]
