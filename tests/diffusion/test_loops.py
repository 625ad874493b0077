from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from prefkit import diffusion as d
from prefkit.comparisons import Winner
from prefkit.errors import OptionError
from tests.diffusion import digits

SHAPE = (16, 1, 8, 8)


def model() -> digits.PixelNet:
    return copy.deepcopy(digits.pretrained()).requires_grad_(True)


def ones(count: int) -> dict[str, Tensor]:
    return {"caption": torch.ones(count, dtype=torch.long)}


def ink(net: torch.nn.Module) -> float:
    noise = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(9))
    return float(d.sample(net, noise, digits.SCHEDULE, count=25, cond=ones(64), clamp=1.0).sample.mean())


def test_experts_alone_teach_a_model() -> None:
    pixels, labels = digits.digits()
    own = pixels[labels == 1]
    experts = own[d.select_experts(own.mean((1, 2, 3)), 20)[0]]
    net, generator = model(), torch.Generator().manual_seed(0)
    loop = d.RankedDemonstrations(net, digits.SCHEDULE, margin=0.1, buffer=16, clamp=1.0)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)

    def draw(place: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return experts[torch.randint(20, (len(place),), generator=generator)], ones(len(place))

    before = ink(net)
    for _ in range(25):
        loop.explore(SHAPE, generator, ones(16))
        optimiser.zero_grad()
        losses = loop.losses(draw, 16, generator)
        assert losses.shape == (16,)
        losses.mean().backward()
        optimiser.step()
        loop.after_update()
    assert 0 < loop.active <= 1
    assert ink(loop.average) > before
    for kept, now in zip(loop.policy.parameters(), net.parameters(), strict=True):
        assert torch.equal(kept, now)


def test_a_policy_is_refreshed_when_it_is_time() -> None:
    net = model()
    loop = d.RankedDemonstrations(net, digits.SCHEDULE, refresh=2)
    with torch.no_grad():
        net.last.bias.add_(1.0)
    loop.after_update()
    assert not torch.equal(loop.policy.last.bias, net.last.bias)
    loop.after_update()
    assert torch.equal(loop.policy.last.bias, net.last.bias)
    stale = d.RankedDemonstrations(net, digits.SCHEDULE, refresh=None)
    with torch.no_grad():
        net.last.bias.add_(1.0)
    stale.after_update()
    assert not torch.equal(stale.policy.last.bias, net.last.bias)


def test_rewards_teach_a_model_and_factors_count() -> None:
    def reward(x: Tensor, cond: Any) -> tuple[Tensor, Tensor]:
        found = x.mean((1, 2, 3))
        found[0] = float("nan")
        return found, torch.ones(len(x))

    net, generator = model(), torch.Generator().manual_seed(0)
    loop = d.AmplifiedPolicyGradient(
        net, digits.SCHEDULE, reward, steps=10, transitions=3, refresh=1, clip_range=0.1, anchor=0.01
    )
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    before = ink(net)
    for _ in range(15):
        for losses in loop.losses((32, 1, 8, 8), generator, ones(32)):
            optimiser.zero_grad()
            losses.mean().backward()
            optimiser.step()
    assert ink(net) > before + 0.02


def test_the_sampling_copy_stays_between_refreshes() -> None:
    net = model()

    def reward(x: Tensor, cond: Any) -> tuple[Tensor, Tensor]:
        return x.mean((1, 2, 3)), torch.ones(len(x))

    loop = d.AmplifiedPolicyGradient(net, digits.SCHEDULE, reward, steps=5, transitions=2, refresh=2)
    with torch.no_grad():
        net.last.bias.add_(1.0)
    for same in (False, True):
        assert len(list(loop.losses(SHAPE, torch.Generator().manual_seed(0), ones(16)))) == 2
        assert torch.equal(loop.sampler.last.bias, net.last.bias) is same


def test_exchanged_comparisons_prefer_what_was_rejected() -> None:
    data = digits.comparisons(3)
    assert [each.judgement for each in d.Exchanged(data)] == [Winner(1)] * 3
    assert [each.judgement for each in d.Exchanged(d.Exchanged(data))] == [each.judgement for each in data]


NET = digits.pretrained()


def many(places: Tensor) -> tuple[Tensor, None]:
    return torch.zeros(1, 1, 8, 8), None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: d.RankedDemonstrations(NET, digits.SCHEDULE, margin=-1.0), "margin must be at least 0"),
        (lambda: d.RankedDemonstrations(NET, digits.SCHEDULE, refresh=0), "refresh must be at least 1 update"),
        (lambda: d.RankedDemonstrations(NET, digits.SCHEDULE, steps=51), r"steps must lie in \[1, 50\], got 51"),
        (
            lambda: d.RankedDemonstrations(NET, digits.SCHEDULE).losses(many, 2, torch.Generator()),
            "holds no trajectory",
        ),
        (lambda: d.AmplifiedPolicyGradient(NET, digits.SCHEDULE, many, steps=5, transitions=5), "fewer than the 5"),
        (lambda: d.AmplifiedPolicyGradient(NET, digits.SCHEDULE, many, eta=0.0), "eta must be greater than 0"),
        (lambda: d.AmplifiedPolicyGradient(NET, digits.SCHEDULE, many, refresh=0), "refresh must be at least 1"),
    ],
)
def test_bad_options(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        call()


def test_states_need_as_many_experts() -> None:
    loop = d.RankedDemonstrations(NET, digits.SCHEDULE)
    loop.explore((4, 1, 8, 8), torch.Generator().manual_seed(0), ones(4))
    with pytest.raises(OptionError, match="2 states need as many expert samples, got 1"):
        loop.losses(many, 2, torch.Generator().manual_seed(0))
