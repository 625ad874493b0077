"""PrefPaint from the command line: a reward model of rated fillings, and an inpainting pipeline trained with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.diffusion import tiny_pipelines as tiny
from tests.diffusion.digits import png
from tests.diffusion.test_pipelines import clip, command, settings, stop_at
from typer.testing import CliRunner

from prefkit import diffusion as d
from prefkit.cli import app
from prefkit.errors import OptionError, PrefkitError
from prefkit.recipes.painting import Holes, Painting, PrefPaintOptions, compared, together

REWARD = settings(
    model__kind="inpainting_reward", model__hidden=16, model__features=8, model__heads=2, training__epochs=40,
    training__learning_rate=3e-3, training__batch_size=16, data__held_out=0.25,
)  # fmt: skip
PAINT = settings(
    method__kind="prefpaint", method__steps=4, method__transitions=2, method__clip_range=0.1, method__refresh=2,
    training__batch_size=4, training__learning_rate=1e-3, training__max_steps=4, training__log_every=1,
    training__progress=False, data__held_out=0.34, report__samples=2, report__steps=2,
)  # fmt: skip


def rated(folder: Path, holes: int = 24, bad: int | None = None) -> str:
    """Three fillings of each hole; people like bright ones."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for hole in range(holes):
        image = torch.rand(1, 16, 16, generator=generator) * 2 - 1
        black = image.clone()
        black[:, 4:12, 4:12] = -1
        (folder / f"hole-{hole}.png").write_bytes(png(black))
        for place in range(3):
            bright = float(torch.rand(1, generator=generator)) * 2 - 1
            filled = image.clone()
            filled[:, 4:12, 4:12] = bright
            name = f"filled-{hole}-{place}.png"
            (folder / name).write_bytes(png(filled))
            score: Any = "good" if bad == len(rows) else 3.5 + 3 * bright
            rows.append({"inpaint": name, "mask_rgb": f"hole-{hole}.png", "score": score, "img_id": f"h{hole}"})
    file = folder / "rated.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


def to_fill(folder: Path, count: int = 6, bad: bool = False) -> str:
    generator = torch.Generator().manual_seed(1)
    rows = []
    for place in range(count):
        (folder / f"image-{place}.png").write_bytes(png(torch.rand(1, 16, 16, generator=generator) * 2 - 1))
        mask = torch.full((1, 16, 16), -1.0)
        if not (bad and place == 2):
            mask[:, 2 + place : 10 + place, 4:12] = 1
        (folder / f"mask-{place}.png").write_bytes(png(mask))
        rows.append({"image": f"image-{place}.png", "mask": f"mask-{place}.png"})
    file = folder / "holes.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An inpainting pipeline, an embedder, ratings, holes, and a trained reward model."""
    folder = tmp_path_factory.mktemp("prefpaint")
    tiny.saved("inpainting", folder / "pipeline")
    clip(folder / "clip")
    given = ["train", "--data", rated(folder), "--output", str(folder / "judge"), *REWARD]
    command(*given, *settings(model__embedder=folder / "clip"))
    to_fill(folder)
    return folder


def test_the_reward_model_ranks_fillings_of_new_holes(folder: Path) -> None:
    run = folder / "judge"
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] / 4
    assert "ranked rightly" in (run / "report.html").read_text()
    # The folder stands for itself: the embedder it was trained with may go.
    judge = d.load_inpainting_judge(run / "model")
    generator = torch.Generator().manual_seed(2)
    images = (torch.rand(20, 1, 16, 16, generator=generator) * 2 - 1).expand(-1, 3, -1, -1)
    masks = torch.zeros(20, 1, 16, 16)
    masks[:, :, 4:12, 4:12] = 1
    holes = judge.embedder(d.blacked_out(images, masks))
    bright, dark = (judge(torch.where(masks > 0, shade, images), holes) for shade in (0.8, -0.4))
    assert (bright.rewards > dark.rewards).double().mean() > 0.9
    u = judge.trusted.norm(bright.features)
    assert u.shape == (20,)
    assert (u > 0).all()


def test_ranking_is_learned_too(folder: Path, tmp_path: Path) -> None:
    given = ["train", "--data", str(folder / "rated.jsonl"), "--output", str(tmp_path / "run"), *REWARD]
    shown = command(*given, *settings(model__embedder=folder / "clip", model__loss="ranking"))
    assert "ranked rightly" in shown.output
    judge = d.load_inpainting_judge(tmp_path / "run" / "model")
    features = judge.trusted.features
    rewards = (judge.reward.head(features)[:, 0] - judge.reward.shift) / judge.reward.scale
    assert float(rewards.mean()) == pytest.approx(0, abs=1e-4)
    assert float(rewards.std()) == pytest.approx(1, abs=1e-4)


def test_a_pipeline_is_trained_and_goes_on_where_it_was_stopped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["train", "--model", str(folder / "pipeline"), "--data", str(folder / "holes.jsonl"), *PAINT]
    given += settings(method__reward=folder / "judge" / "model", training__save_every=1)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    shown = command(*given, "--output", str(whole))
    assert "win rate" in shown.output
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all({"reward", "factor", "loss"} <= line.keys() for line in lines)
    assert all(1 <= line["factor"] <= 2.21 for line in lines)
    assert (whole / "samples.png").stat().st_size > 1000
    assert "Fillings of held-out holes" in (whole / "report.html").read_text()
    loaded = diffusers.DiffusionPipeline.from_pretrained(whole / "model")
    assert type(loaded).__name__ == "StableDiffusionInpaintPipeline"
    paths = folder / "pipeline", whole / "model"
    before, after = (d.load_pipeline(str(path)).denoiser.state_dict() for path in paths)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    with monkeypatch.context() as patched:
        stop_at(4, patched)
        assert CliRunner().invoke(app, [*given, "--output", str(stopped)]).exit_code == 130
    command(*given, "--output", str(stopped), "--resume")
    assert (stopped / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    for file in (whole / "model" / "unet").iterdir():
        assert (stopped / "model" / "unet" / file.name).read_bytes() == file.read_bytes()


def test_fillings_are_worth_more_after_training(folder: Path) -> None:
    """By the reward that was followed, from the same noise."""
    judge = d.load_inpainting_judge(folder / "judge" / "model")
    scorer = d.load_pipeline(str(folder / "pipeline"))
    holes = Holes(scorer, judge, folder / "holes.jsonl", limit=None, strict=True).items
    how = {"steps": 5, "transitions": 4, "refresh": 1, "clip_range": 0.2}
    method = PrefPaintOptions.parse({"kind": "prefpaint", "reward": "-", **how})
    loop = Painting(scorer, holes, judge, method, 32, torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(scorer.denoiser.parameters(), lr=1e-3)
    drawn: dict[str, Any] = {"cond": together(holes * 4)[0], "seeds": range(24), "steps": 5}
    before = d.fill_holes(scorer, **drawn)
    scorer.train()
    for _ in range(15):
        for losses in loop.round():
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
    found = compared(judge, holes * 4, d.fill_holes(scorer, **drawn), before)
    assert found.gain.low > 0.03
    assert found.rate.low > 0.6


def test_rows_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    given = ["train", "--data", rated(tmp_path, bad=4), *REWARD, *settings(model__embedder=folder / "clip")]
    with pytest.raises(PrefkitError, match=r"rated\.jsonl:5: field 'score': must be a number, got 'good'; --skip-bad"):
        command(*given, "--output", str(tmp_path / "strict"))
    shown = command(*given, "--output", str(tmp_path / "run"), "--skip-bad")
    assert "1 set aside" in shown.output
    with pytest.raises(OptionError, match="--resume does not apply"):
        command(*given, "--output", str(tmp_path / "run"), "--resume")
    given = ["train", "--model", str(folder / "pipeline"), "--data", to_fill(tmp_path, bad=True), *PAINT]
    given += settings(method__reward=folder / "judge" / "model")
    with pytest.raises(PrefkitError, match=r"holes\.jsonl:3: field 'mask': nothing is white in the mask"):
        command(*given, "--output", str(tmp_path / "strict-paint"))
    command(*given, "--output", str(tmp_path / "paint"), "--skip-bad", *settings(training__max_steps=1))
    assert json.loads((tmp_path / "paint" / "skipped.jsonl").read_text())["line"] == 3


def test_what_does_not_go_together(folder: Path, tmp_path: Path) -> None:
    given = ["train", "--data", str(folder / "holes.jsonl"), "--output", str(tmp_path / "run"), *PAINT]
    judge = settings(method__reward=folder / "judge" / "model")
    with pytest.raises(OptionError, match="method prefpaint needs an inpainting pipeline"):
        command(*given, *judge, "--model", tiny.saved("sd", tmp_path / "sd"))
    with pytest.raises(OptionError, match="holds no reward model of fillings"):
        command(*given, "--model", str(folder / "pipeline"), *settings(method__reward=folder / "clip"))
    with pytest.raises(OptionError, match="batch_size must be at least 2"):
        command(*given, *judge, "--model", str(folder / "pipeline"), *settings(training__batch_size=1))
    with pytest.raises(OptionError, match=r"data\.format: images with holes are read from one file"):
        command(*given, *judge, "--model", str(folder / "pipeline"), *settings(data__format="hpd"))
    rating = ["train", "--data", str(folder / "rated.jsonl"), "--output", str(tmp_path / "judge"), *REWARD]
    shutil.copytree(folder / "clip", tmp_path / "clip")
    weights = tmp_path / "clip" / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(weights).items() if "visual_projection" not in name}
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(OptionError, match="is no CLIP model: it lacks"):
        command(*rating, *settings(model__embedder=tmp_path / "clip"))
    with pytest.raises(OptionError, match="cannot be loaded"):
        command(*rating, *settings(model__embedder=tmp_path / "none"))
    with pytest.raises(OptionError, match="heads must divide 16"):
        command(*rating, *settings(model__embedder=folder / "clip", model__heads=3))
    with pytest.raises(PrefkitError, match="2 holes are too few"):
        command(*rating, *settings(model__embedder=folder / "clip", data__limit=6, data__held_out=0.5))


def test_fillings_of_one_pipeline_tie(folder: Path) -> None:
    judge = d.load_inpainting_judge(folder / "judge" / "model")
    scorer = d.load_pipeline(str(folder / "pipeline"))
    holes = Holes(scorer, judge, folder / "holes.jsonl", limit=3, strict=True).items
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert compared(judge, holes, images, images).rate.mean == 0.5
