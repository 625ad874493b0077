from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor

from prefkit import diffusion as d
from prefkit.errors import OptionError, RecordError
from tests.diffusion import tiny_pipelines as tiny
from tests.diffusion.test_pipelines import pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.saved("inpainting", tmp_path_factory.mktemp("inpainting"))


def holes(count: int) -> tuple[Tensor, Tensor]:
    images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    masks = torch.zeros(count, 1, 16, 16)
    masks[:, :, 4:12, 4:12] = 1
    return images, masks


def test_the_denoiser_sees_the_hole_and_what_is_around_it(folder: str) -> None:
    scorer = d.load_pipeline(folder)
    images, masks = holes(2)
    cond = d.inpainting_condition(scorer.codec, images, masks)
    assert cond["mask"].shape == (2, 1, 8, 8)
    assert cond["mask"].sum() == 2 * 16
    x_t, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([5, 60])
    found = scorer.denoiser(x_t, t, cond)
    unet = diffusers.DiffusionPipeline.from_pretrained(folder).unet
    joined = torch.cat([x_t, cond["mask"], cond["masked"]], 1)
    torch.testing.assert_close(found, unet(joined, t, encoder_hidden_states=cond["prompt"]).sample)
    other = d.inpainting_condition(scorer.codec, -images, masks, "a cat")
    assert not torch.allclose(scorer.denoiser(x_t, t, other), found)
    empty = d.with_empty_prompt(other, scorer.codec)
    assert torch.equal(empty["prompt"], cond["prompt"])
    assert torch.equal(empty["masked"], other["masked"])


def test_a_reward_trains_an_inpainting_pipeline(folder: str, tmp_path: Path) -> None:
    scorer = d.load_pipeline(folder)
    images, masks = holes(4)
    cond = d.inpainting_condition(scorer.codec, images, masks)

    def embed(pixels: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(pixels, 2).flatten(1)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        judge = d.InpaintingReward(12, 16, 8, heads=2).eval().requires_grad_(False)
    training = judge(embed(torch.rand(20, 3, 16, 16)), embed(torch.rand(20, 3, 16, 16))).features
    trusted = d.RewardUncertainty(training, 0.1)
    seen: list[Tensor] = []

    def reward(samples: Tensor, cond: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        found = judge(embed(scorer.codec.decode(samples)), embed(images * (masks < 0.5)))
        seen.append(d.amplification(trusted.norm(found.features, "released"), k=0.05))
        return found.rewards, seen[-1]

    loop = d.AmplifiedPolicyGradient(scorer.denoiser, scorer.schedule, reward, steps=4, transitions=2, clip_range=0.1)
    before = {name: weight.clone() for name, weight in scorer.denoiser.state_dict().items()}
    optimiser = torch.optim.AdamW(scorer.denoiser.parameters(), lr=1e-3)
    for losses in loop.losses((4, *scorer.codec.shape), torch.Generator().manual_seed(0), cond):
        optimiser.zero_grad()
        losses.sum().backward()
        optimiser.step()
    assert (seen[0] >= 1).all()
    assert any(not torch.equal(before[name], weight) for name, weight in scorer.denoiser.state_dict().items())
    scorer.save(tmp_path / "out")
    assert (
        type(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")).__name__ == "StableDiffusionInpaintPipeline"
    )


def test_the_reward_model_learns_to_rank_and_to_rate() -> None:
    generator = torch.Generator().manual_seed(0)
    filled, hole = torch.randn(2, 64, 8, generator=generator)
    quality = filled[:, 0]
    better, worse = filled[quality.argsort(descending=True)][:32], filled[quality.argsort()][:32]
    for rated in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = d.InpaintingReward(8, 16, 8, heads=2)
        optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(60):
            pair = (model(better, hole[:32]), model(worse, hole[:32]))
            scores = (better[:, 0], worse[:, 0]) if rated else ()
            optimiser.zero_grad()
            model.losses(*pair, *scores).mean().backward()
            optimiser.step()
        model.eval()
        found = model(better, hole[:32]).rewards > model(worse, hole[:32]).rewards
        assert found.double().mean() > 0.9
    torch.testing.assert_close(
        model(better, hole[:32]).rewards, model(better, hole[:32]).features @ model.head.weight[0]
    )
    with pytest.raises(OptionError, match="scores of both sides"):
        model.losses(model(better, better), model(worse, worse), better[:, 0])


def test_bad_holes(folder: str, tmp_path: Path) -> None:
    codec = d.load_pipeline(folder).codec
    images, masks = holes(2)
    with pytest.raises(OptionError, match="masks must be 1"):
        d.inpainting_condition(codec, images, masks * 0.5)
    with pytest.raises(OptionError, match="each image needs a mask"):
        d.inpainting_condition(codec, images, masks[:1])
    with pytest.raises(OptionError, match="fills nothing in"):
        d.inpainting_condition(d.load_pipeline(tiny.saved("sd", tmp_path / "sd")).codec, images, masks)
    with pytest.raises(OptionError, match="fills in holes, which captions alone do not have"):
        d.draw_images(d.load_pipeline(folder), ["a cat"], [0])
    with pytest.raises(RecordError, match="comparisons of images have no masks"):
        codec.encode(pairs(1)[0])
