"""The diffusion recipes in a short form: the world, and that the parts do what the experiments rely on."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from prefkit.diffusion import InversionOptions, RewardUncertainty, TruncatedFineTuning
from prefkit.errors import PrefkitError
from prefkit.objectives import make_objective
from prefkit.recipes import Claim, Experiment, Illustrated, Recipe, diffusion_dro, prefpaint, reproduce, ring, self_npo
from prefkit.report import bars, panels, picture_grid

UPDATES = 500


@lru_cache(maxsize=1)
def base() -> ring.Denoiser:
    """A model that was trained too little, but enough to see things move."""
    generator = torch.Generator().manual_seed(0)
    model = ring.fresh(0)
    ring.pretrain(model, lambda: (ring.points(256, generator), None), generator, updates=UPDATES)
    return model.requires_grad_(False)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_points_lie_on_the_ring() -> None:
    x = ring.points(4000, generator())
    assert ring.modes_kept(x) == 8
    assert ring.on_manifold(x) > 0.99
    assert float(ring.reward(x).mean()) == pytest.approx(0, abs=0.05)
    assert ring.wins(x + 5, x) == 1


def test_labels_follow_the_reward() -> None:
    first, second = ring.points(4000, generator()), ring.points(4000, torch.Generator().manual_seed(2))
    clean = ring.labelled(first, second, generator(), sharpness=None)
    assert (ring.reward(clean.chosen) >= ring.reward(clean.rejected)).all()
    noisy = ring.labelled(first, second, generator(), sharpness=1.0)
    gap = ring.reward(first) - ring.reward(second)
    share = (noisy.chosen == first).all(1).double().mean()
    assert float(share) == pytest.approx(float(torch.sigmoid(gap).mean()), abs=0.03)


@pytest.mark.parametrize(("latents", "least"), [("forward", 0.1), ("ddim", 0.1), ("renoise", 0.1)])
def test_alignment_raises_the_reward(latents: str, least: float) -> None:
    pairs = ring.pairs_of(base(), 1500, generator(), sharpness=None)
    objective = make_objective({"kind": "dpo", "beta": 100.0})
    how = {"latents": latents, "inversion": InversionOptions(steps=3), "first_step": 1}
    model = ring.align(base(), pairs, objective, generator(), updates=40, batch=128, **how)
    before, after = (float(ring.reward(ring.draw(each, 1000, generator())).mean()) for each in (base(), model))
    assert after > before + least
    assert ring.accuracy(model, base(), pairs, generator(), draws=4) > 0.6


def test_a_tie_has_no_gradient_under_smoothed_labels() -> None:
    from prefkit.recipes.smpo_diffusion import gradient_of_ties

    x = ring.points(512, generator())
    config = {"kind": "smpo", "beta": 100.0, "score_range": 2.0}
    assert gradient_of_ties(base(), x[:256], x[256:], config, generator()) == 0


def test_experts_raise_the_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusion_dro, "UPDATES", 60)
    pool = ring.draw(base(), 500, generator())
    experts = pool[ring.reward(pool).topk(50).indices]
    model, active = diffusion_dro.rank(base(), experts, 0.1, True, generator())
    assert 0 < active < 1
    before, after = (float(ring.reward(ring.draw(each, 1000, generator())).mean()) for each in (base(), model))
    assert after > before + 0.1


def test_a_student_of_truncated_runs_becomes_worse() -> None:
    student = ring.fresh(0, given=8, hidden=32)
    draws = generator()

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        modes = torch.randint(8, (256,), generator=draws)
        return ring.points(256, draws, modes), self_npo.one_hot(modes)

    ring.pretrain(student, batch, draws, updates=300)
    before = self_npo.score(student, generator())
    loop = TruncatedFineTuning(student, ring.SCHEDULE)
    optimiser = torch.optim.AdamW(student.parameters(), lr=3e-4)
    for _ in range(60):
        modes = torch.randint(8, (128,), generator=draws)
        losses = loop.losses((128, 2), draws, cond=self_npo.one_hot(modes), uncond=torch.zeros(128, 8))
        optimiser.zero_grad()
        losses.mean().backward()
        optimiser.step()
        loop.after_update()
    assert self_npo.score(student, generator()) < before - 0.05


def test_the_bound_covers_and_reinforcement_raises_the_reward() -> None:
    assert prefpaint.coverage(generator(), sets=5) == 1
    draws = generator()
    model = ring.fresh(0, dims=1, given=1)

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        x = ring.points(256, draws)
        return x[:, 1:], x[:, :1]

    ring.pretrain(model, batch, draws, updates=300)
    known = ring.points(150, draws)[:, :1]
    filled = prefpaint.fill(model, known, draws).sample
    fitted = RewardUncertainty(prefpaint.gaussian_features(known, filled), prefpaint.LAMBDA)
    weights = fitted.fit(prefpaint.preference(filled))
    tuned = prefpaint.reinforce(model, fitted, weights, "uncertainty", torch.optim.AdamW, 1e-3, 15, draws)
    assert prefpaint.true_reward(tuned, generator()) > prefpaint.true_reward(model, generator()) + 0.1


def test_pictures_of_the_first_seed_are_written(tmp_path: Path) -> None:
    def run(seed: int) -> Illustrated:
        x = ring.points(50, torch.Generator().manual_seed(seed))
        return Illustrated({"a": float(seed), "b": 1.0}, ring.pictures({"base": x}))

    claim = Claim("less", "a", "b", lambda a, b: (a <= b).all())
    recipe = Recipe("x", "x", 2024, "x", {}, Experiment(run, [claim], lambda f: bars(f, title="figures"), seeds=2))
    result = reproduce(recipe)
    first = run(0).pictures["samples"].data.rows
    assert result.pictures["samples"].data.rows == first
    result.write(tmp_path)
    assert {file.stem for file in tmp_path.glob("*.svg")} == {"plot", "samples", "rewards", "modes"}


def test_pictures_that_cannot_be_drawn() -> None:
    with pytest.raises(PrefkitError, match="nothing to draw"):
        panels({}, title="x")
    with pytest.raises(PrefkitError, match=r"panel 'a' of plot 'x' needs finite points \[n, 2\]"):
        panels({"a": np.zeros((3, 3))}, title="x")
    with pytest.raises(PrefkitError, match="one number of images"):
        picture_grid({"a": np.zeros((2, 4, 4)), "b": np.zeros((1, 4, 4))}, title="x")
    grid = picture_grid({"a": np.full((2, 4, 4, 3), 0.5)}, title="x", columns=["one", "two"])
    assert grid.data.rows == [["a", 0.5, 0.5]]
