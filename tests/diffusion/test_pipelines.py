from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import CLIPConfig, CLIPModel
from typer.testing import CliRunner

from prefkit import diffusion as d
from prefkit.cli import app
from prefkit.comparisons import Comparison, load_comparisons
from prefkit.comparisons.formats.images import image
from prefkit.comparisons.rows import user
from prefkit.diagnostics import evaluate
from prefkit.errors import OptionError, PrefkitError, RecordError
from prefkit.objectives import make_objective
from prefkit.recipes.run_images import saved_pipeline
from prefkit.training import TrainingOptions, fit
from tests.diffusion import digits
from tests.diffusion import tiny_pipelines as tiny


def colours(count: int, seed: int = 0) -> list[tuple[bytes, bytes]]:
    """Pairs of images, a bright one and a dark one."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        noise = torch.rand(2, 16, 16, generator=generator)
        found.append((digits.png(noise[:1]), digits.png(noise[1:] - 1)))
    return found


def caption(style: str, place: int = 0) -> str:
    return f"digit {place}" if style == "dit" else ("a cat", "the dog")[place % 2]


def pairs(count: int, style: str = "sd") -> list[Comparison]:
    return [
        Comparison.pair(user(caption(style, place)), image(bright), image(dark), source="x.parquet", line=place + 1)
        for place, (bright, dark) in enumerate(colours(count))
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pipelines")
    return {style: tiny.saved(style, folder / style) for style in tiny.STYLES}


def batch(scorer: d.DiffusionScorer, style: str, count: int = 3) -> dict[str, torch.Tensor]:
    return scorer.collate([scorer.encode(each) for each in pairs(count, style)])


@pytest.mark.parametrize("style", [style for style in tiny.STYLES if style != "sd-sample"])
def test_every_style_trains_and_loads_again(style: str, folders: dict[str, str], tmp_path: Path) -> None:
    scorer = d.load_pipeline(d.PipelineOptions.parse({"path": folders[style], "scores": {"draws": 2}}))
    before = scorer.eval()(batch(scorer, style)).policy_logps.detach()
    options = TrainingOptions(epochs=2, batch_size=4, learning_rate=1e-3, progress=False, save_every=0)
    how: dict[str, Any] = {"output": tmp_path / "run", "cache": tmp_path / "c", "options": options}
    result = fit(scorer, pairs(8, style), make_objective({"kind": "dpo", "beta": 500.0}), **how)
    after = scorer.eval()(batch(scorer, style)).policy_logps.detach()
    assert not torch.allclose(before, after)
    again = d.load_pipeline(d.PipelineOptions.parse({"path": str(result.run.model), "scores": {"draws": 2}}))
    torch.testing.assert_close(again.eval()(batch(again, style)).policy_logps.detach(), after)
    # diffusers asks to be told which text encoders a folder does without.
    without = {"text_encoder_3": None, "tokenizer_3": None} if style == "sd3" else {}
    loaded = diffusers.DiffusionPipeline.from_pretrained(result.run.model, **without)
    assert type(loaded).__name__ == type(tiny.STYLES[style]()).__name__
    assert not list(result.run.model.rglob("*.bin"))


@pytest.mark.parametrize("style", tiny.STYLES)
def test_a_seed_draws_the_same_image_alone_and_in_a_batch(style: str, folders: dict[str, str]) -> None:
    scorer = d.load_pipeline(folders[style])
    captions = [caption(style, place) for place in (0, 1, 0)]
    images = d.draw_images(scorer, captions, [0, 1, 2], steps=3, guidance=2.0)
    assert images.shape == (3, 3, 16, 16)
    alone = d.draw_images(scorer, captions[1:2], [1], steps=3, guidance=2.0)
    torch.testing.assert_close(alone[0], images[1], atol=1e-4, rtol=1e-4)


def test_predictions_are_those_of_the_pipeline_itself(folders: dict[str, str]) -> None:
    """Against the sampler of diffusers: the same captions, noise and steps."""
    pipeline = d.read_pipeline(folders["sd"])
    scorer = d.load_pipeline(folders["sd"])
    noise = torch.randn(1, *scorer.codec.shape, generator=torch.Generator().manual_seed(3))
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="leading", steps_offset=3, set_alpha_to_one=True
    )
    theirs = pipeline("a cat", latents=noise, num_inference_steps=25, guidance_scale=3.0, output_type="pt").images
    ours = d.draw_images(scorer, ["a cat"], [3], steps=25, guidance=3.0)
    torch.testing.assert_close((ours + 1) / 2, theirs.float(), atol=1e-3, rtol=1e-3)


def test_schedules_are_those_of_the_schedulers(folders: dict[str, str]) -> None:
    found = {style: d.load_pipeline(folder).schedule for style, folder in folders.items()}
    kinds = {style: schedule.prediction for style, schedule in found.items()}
    assert (kinds["sd"], kinds["sd-v"], kinds["sd-sample"], kinds["sd3"]) == ("epsilon", "v", "sample", "flow")
    x0, noise, t = torch.randn(2, 4), torch.randn(2, 4), torch.tensor([3, 90])
    for style in ("sd", "sd-v"):
        scheduler = d.read_pipeline(folders[style]).scheduler
        torch.testing.assert_close(found[style].add_noise(x0, noise, t), scheduler.add_noise(x0, noise, t))
        torch.testing.assert_close(
            found["sd-v"].target(x0, noise, t), scheduler.get_velocity(x0, noise, t), atol=1e-5, rtol=1e-5
        )
    flow = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=100, shift=3.0)
    torch.testing.assert_close(found["sd3"].sigmas, flow.sigmas.flip(0), atol=1e-5, rtol=1e-5)


def test_an_adapter_trains_alone_and_is_merged_when_it_is_saved(folders: dict[str, str], tmp_path: Path) -> None:
    options = d.PipelineOptions.parse({"path": folders["sd"], "lora": {"rank": 2}, "scores": {"draws": 2}})
    scorer = d.load_pipeline(options)
    names = [name for name, weight in scorer.named_parameters() if weight.requires_grad]
    assert names
    assert all("lora" in name for name in names)
    frozen = scorer.eval().reference(batch(scorer, "sd")).policy_logps
    training = TrainingOptions(epochs=4, batch_size=4, learning_rate=1e-2, progress=False, save_every=0)
    how: dict[str, Any] = {"output": tmp_path / "run", "cache": tmp_path / "c", "options": training}
    result = fit(scorer, pairs(8), make_objective({"kind": "dpo", "beta": 500.0}), **how)
    torch.testing.assert_close(scorer.eval().reference(batch(scorer, "sd")).policy_logps, frozen)
    merged = d.load_pipeline(d.PipelineOptions.parse({"path": str(result.run.model), "scores": {"draws": 2}})).eval()
    ours = scorer(batch(scorer, "sd")).policy_logps.detach()
    torch.testing.assert_close(merged(batch(merged, "sd")).policy_logps.detach(), ours, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(ours, frozen)
    assert (result.run.model / "adapter" / "adapter_model.safetensors").is_file()


def test_the_posterior_is_drawn_from_in_training_only(folders: dict[str, str]) -> None:
    scorer = d.load_pipeline(folders["sd"])
    inputs = batch(scorer, "sd")
    vae = d.read_pipeline(folders["sd"]).vae
    pixels = torch.stack([d.to_tensor(d.read_image(one), (16, 16)) for one in colours(1)[0]])
    mean = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
    torch.testing.assert_close(inputs["x0"][:2], mean.detach(), atol=2e-3, rtol=2e-3)
    assert (inputs["spread"] > 0).all()
    plain = d.load_pipeline(d.PipelineOptions.parse({"path": folders["sd"], "posterior": "mean"}))
    assert "spread" not in batch(plain, "sd")


def test_gradient_checkpointing_gives_the_same_gradients(folders: dict[str, str]) -> None:
    found = []
    for again in (False, True):
        scorer = d.load_pipeline(folders["sd"]).train()
        assert scorer.supports_gradient_checkpointing
        if again:
            scorer.gradient_checkpointing_enable()
        scorer(batch(scorer, "sd")).policy_logps.sum().backward()
        found.append(torch.cat([weight.grad.flatten() for weight in scorer.parameters() if weight.grad is not None]))
    torch.testing.assert_close(*found)


def test_a_negative_model_changes_guided_images_only(folders: dict[str, str], tmp_path: Path) -> None:
    scorer, other = d.load_pipeline(folders["sd"]), d.load_pipeline(tiny.saved("sd", tmp_path / "other", seed=1))
    how: dict[str, Any] = {"captions": ["a cat"], "seeds": [0], "steps": 4}
    for guidance, same in ((1.0, True), (3.0, False)):
        images = [d.draw_images(scorer, **how, guidance=guidance, negative=each) for each in (None, other)]
        assert torch.allclose(*images, atol=1e-5) is same


# -- what is wrong with a folder ---------------------------------------------------------------------------------------


def edited(folder: str, target: Path, part: str, **changes: Any) -> str:
    shutil.copytree(folder, target)
    file = target / part
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return str(target)


def test_bad_folders(folders: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"is no pipeline: there is no model_index\.json in it"):
        d.load_pipeline(str(tmp_path))
    with pytest.raises(OptionError, match="cannot be loaded"):
        d.load_pipeline("nobody/nothing")
    shutil.copytree(folders["sd"], tmp_path / "no-vae")
    shutil.rmtree(tmp_path / "no-vae" / "vae")
    with pytest.raises(OptionError, match="lacks its vae: there is no such folder in it"):
        d.load_pipeline(str(tmp_path / "no-vae"))
    path = edited(folders["sd"], tmp_path / "null-vae", "model_index.json", vae=[None, None])
    with pytest.raises(OptionError, match="has no vae, without which its latents cannot be made"):
        d.load_pipeline(path)
    path = edited(
        folders["sd"], tmp_path / "predicts", "scheduler/scheduler_config.json", prediction_type="v_predicton"
    )
    with pytest.raises(OptionError, match="unknown prediction type 'v_predicton'; did you mean 'v_prediction'"):
        d.load_pipeline(path)


def test_a_pipeline_without_a_scheduler(folders: dict[str, str], tmp_path: Path) -> None:
    path = edited(folders["sd"], tmp_path / "null-scheduler", "model_index.json", scheduler=[None, None])
    with pytest.raises(OptionError, match="has no scheduler, which says how its images are noised"):
        d.load_pipeline(path)
    shutil.rmtree(tmp_path / "null-scheduler")
    path = edited(folders["sd"], tmp_path / "no-scheduler", "model_index.json")
    shutil.rmtree(tmp_path / "no-scheduler" / "scheduler")
    with pytest.raises(OptionError, match="lacks its scheduler: there is no such folder in it"):
        d.load_pipeline(path)


def with_variants(folder: str, target: Path, *variants: str, plain: bool = False) -> str:
    """The same pipeline with its weights in other files."""
    shutil.copytree(folder, target)
    for file in list(target.rglob("*.safetensors")):
        for variant in variants:
            shutil.copy(file, file.with_name(f"{file.stem}.{variant}.safetensors"))
        if not plain:
            file.unlink()
    return str(target)


def test_weight_files_of_a_variant(folders: dict[str, str], tmp_path: Path) -> None:
    path = with_variants(folders["sd"], tmp_path / "half", "fp16")
    expected = d.load_pipeline(folders["sd"]).denoiser.state_dict()
    for variant in (None, "fp16"):
        found = d.load_pipeline(d.PipelineOptions(path=path, variant=variant)).denoiser.state_dict()
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    with pytest.raises(OptionError, match=r"model\.variant: .* no weights of the variant 'fp61'; it has fp16"):
        d.load_pipeline(d.PipelineOptions(path=path, variant="fp61"))
    both = with_variants(folders["sd"], tmp_path / "both", "fp16", "ema")
    with pytest.raises(OptionError, match="no plain weights, and several variants; it has ema, fp16"):
        d.load_pipeline(both)
    saved = saved_pipeline(d.PipelineOptions(path=both, variant="fp16"), path)
    assert (saved.variant, saved.reference, saved.reference_variant) == (None, both, "fp16")
    assert d.load_pipeline(saved)._reference


def test_a_hub_name_is_known_by_the_local_cache(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("PREFKIT_CACHE", str(tmp_path / "cache"))
    kept = tmp_path / "models--someone--tiny"
    shutil.copytree(folders["sd"], kept / "snapshots" / "0a")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0a")
    text = tmp_path / "models--someone--text"
    (text / "snapshots" / "0b").mkdir(parents=True)
    (text / "snapshots" / "0b" / "config.json").write_text("{}")
    (text / "refs").mkdir()
    (text / "refs" / "main").write_text("0b")
    assert d.is_pipeline("someone/tiny")
    assert not any(d.is_pipeline(name) for name in ("someone/text", "someone/unknown", "builtin", "a b/c"))
    given = ["--data", parquet(tmp_path), "--output", str(tmp_path / "run"), *FAST, *settings(report__samples=0)]
    command("train", "--model", "someone/tiny", *given, *settings(training__max_steps=1))
    assert d.is_pipeline(str(tmp_path / "run" / "model"))
    with pytest.raises(OptionError, match="no pipeline of that name in the hub's cache"):
        d.load_pipeline("someone/unknown")
    shutil.rmtree(kept / "snapshots" / "0a" / "vae")
    with pytest.raises(OptionError, match="the pipeline someone/tiny lacks its vae"):
        d.load_pipeline("someone/tiny")


def test_latents_that_are_no_numbers_name_the_image(folders: dict[str, str]) -> None:
    scorer = d.load_pipeline(folders["sd"])
    with torch.no_grad():
        scorer.codec.vae.quant_conv.bias.fill_(float("nan"))
    with pytest.raises(RecordError, match=r"field 'responses\[0\]': the VAE gives latents that are not finite"):
        scorer.encode(pairs(1)[0])


def test_captions_that_are_no_labels(folders: dict[str, str]) -> None:
    with pytest.raises(RecordError, match="the model knows no label 'a cat'; it knows digit 0, digit 1"):
        d.load_pipeline(folders["dit"]).encode(pairs(1)[0])


WITHOUT = """
import sys
sys.modules["diffusers"] = None
from prefkit import diffusion as d
from prefkit.errors import PrefkitError
sys.modules["PIL"] = None
for call in (lambda: d.read_pipeline("x"), lambda: d.read_image(b"x")):
    try:
        call()
    except PrefkitError as error:
        print(error)
"""
"""Plots need pillow themselves, so it goes missing only after them."""


def test_the_package_works_without_diffusers_and_pillow() -> None:
    shown = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == [
        "diffusers is not installed; diffusion pipelines need: pip install 'prefkit[diffusion]'",
        "pillow is not installed; diffusion pipelines need: pip install 'prefkit[diffusion]'",
    ]


# -- commands ----------------------------------------------------------------------------------------------------------


def parquet(folder: Path, rows: int = 8, bad: bool = False) -> str:
    """Pick-a-Pic's columns."""
    columns: dict[str, list[Any]] = {name: [] for name in ("caption", "jpg_0", "jpg_1", "label_0", "label_1")}
    for place, (bright, dark) in enumerate(colours(rows)):
        first = place % 2 == 0
        columns["caption"].append(f"a {'abcdefgh'[place]}")
        columns["jpg_0"].append(bright if first else dark)
        columns["jpg_1"].append((dark if first else bright)[: 80 if bad and place == 3 else None])
        columns["label_0"].append(float(first))
        columns["label_1"].append(float(not first))
    pq.write_table(pa.table(columns), folder / "pairs.parquet")
    return str(folder / "pairs.parquet")


def command(*arguments: str) -> Any:
    result = CliRunner().invoke(app, list(arguments))
    if isinstance(result.exception, PrefkitError):
        raise result.exception
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result


def settings(**values: Any) -> list[str]:
    return [part for name, value in values.items() for part in ("--set", f"{name.replace('__', '.')}={value}")]


FAST = settings(
    training__batch_size=4, training__learning_rate=1e-3, report__steps=2, report__samples=2, training__progress=False,
    model__scores__draws=1, data__held_out=0.5,
)  # fmt: skip


def test_train_sample_and_evaluate(folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFKIT_CACHE", str(tmp_path / "cache"))
    data, output = parquet(tmp_path), str(tmp_path / "run")
    command("train", "--model", folders["sd"], "--data", data, "--output", output, *FAST)
    run = Path(output)
    assert (run / "samples.png").stat().st_size > 1000
    assert "The same captions" in (run / "report.html").read_text()
    assert "objective" in (run / "config.yaml").read_text()
    assert diffusers.DiffusionPipeline.from_pretrained(run / "model").unet is not None
    with pytest.raises(PrefkitError, match="holds another run"):
        command("train", "--model", folders["sd"], "--data", data, "--output", output, *FAST)

    picture = tmp_path / "grid.png"
    given = ["--prompt", "a cat", "--seed", "0", "--seed", "1", "--steps", "2", "--output", str(picture)]
    shown = command("sample", str(run / "model"), "--before", folders["sd"], *given)
    assert "2 images a pipeline" in shown.output
    assert picture.stat().st_size > 1000

    shown = command("evaluate", str(run / "model"), data, "--reference", folders["sd"])
    assert "reward accuracy" in shown.output
    scores = tmp_path / "scores.jsonl"
    command("score", folders["sd"], data, "--output", str(scores))
    lines = [json.loads(line) for line in scores.read_text().splitlines()]
    assert len(lines) == 8
    assert all(each["logp"] < 0 for line in lines for each in line["responses"])
    with pytest.raises(OptionError, match="--tokens does not apply"):
        command("score", folders["sd"], data, "--output", str(scores), "--tokens")
    judge = clip(tmp_path / "clip")
    figures = tmp_path / "wins.json"
    how = ["--reference", folders["sd"], "--scorer", f"clip:{judge}", "--steps", "2", "--output", str(figures)]
    shown = command("evaluate", str(run / "model"), data, *how)
    assert "win rate" in shown.output
    found = json.loads(figures.read_text())
    assert 0 <= found["win_rate"]["low"] <= found["win_rate"]["mean"] <= found["win_rate"]["high"] <= 1
    assert len(found["captions"]) == 8


def test_a_damaged_image_stops_a_run_or_is_listed(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFKIT_CACHE", str(tmp_path / "cache"))
    given = ["train", "--model", folders["sd"], "--data", parquet(tmp_path, bad=True), *FAST]
    given += settings(data__held_out=0.0, report__samples=0)
    with pytest.raises(PrefkitError, match=r"pairs\.parquet:4: .*damaged or cut off.*--skip-bad"):
        command(*given, "--output", str(tmp_path / "strict"))
    command(*given, "--output", str(tmp_path / "run"), "--skip-bad")
    (line,) = (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["line"] == 4
    with pytest.raises(OptionError, match="--skip-bad is for images"):
        command("train", "--data", "builtin", "--output", str(tmp_path / "text"), "--skip-bad")


DEMONSTRATIONS = settings(method__kind="demonstrations", method__margin=0.1, method__steps=4, method__experts=4)
TRUNCATED = settings(method__kind="truncated", method__count=5, method__steps=2)


@pytest.mark.parametrize(("method", "figure"), [(DEMONSTRATIONS, "active"), (TRUNCATED, "loss")])
def test_training_without_pairs(method: list[str], figure: str, folders: dict[str, str], tmp_path: Path) -> None:
    given = ["train", "--model", folders["sd"], "--data", parquet(tmp_path, bad=True), "--skip-bad"]
    given += [*method, *FAST, *settings(data__held_out=0.0)]
    with pytest.raises(OptionError, match=r"draws its batches without end: set training\.max_steps"):
        command(*given, "--output", str(tmp_path / "endless"))
    output = tmp_path / "run"
    given += settings(training__max_steps=4, training__log_every=2)
    with pytest.raises(OptionError, match=r"training\.warmup does not apply to method"):
        command(*given, "--output", str(output), *settings(training__warmup=2))
    command(*given, "--output", str(output))
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert all(figure in line for line in lines)
    assert json.loads((output / "skipped.jsonl").read_text())["line"] == 4
    before, after = (d.load_pipeline(path).state_dict() for path in (folders["sd"], str(output / "model")))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert (output / "samples.png").is_file()
    with pytest.raises(PrefkitError, match="holds another run"):
        command(*given, "--output", str(output))


@pytest.mark.parametrize(("method", "dropout"), [(DEMONSTRATIONS, None), (TRUNCATED, 0.5)])
def test_a_run_without_pairs_goes_on_where_it_was_stopped(
    method: list[str],
    dropout: float | None,
    folders: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = ["train", "--model", folders["sd"], "--data", parquet(tmp_path), *method, *FAST]
    given += settings(data__held_out=0.0, report__samples=0, training__max_steps=7, training__log_every=1)
    given += settings(training__save_every=2, method__decay=0.5)
    given += [] if dropout is None else settings(model__lora__dropout=dropout)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    command(*given, "--output", str(whole))
    with monkeypatch.context() as patched:
        stop_at(6, patched)
        assert CliRunner().invoke(app, [*given, "--output", str(stopped)]).exit_code == 130
    assert "stopped at step 5, the last checkpoint is that of step 4; go on with --resume" in caplog.text
    with pytest.raises(OptionError, match=r"was begun with training\.seed = 0, got 1"):
        command(*given, "--output", str(stopped), "--resume", *settings(training__seed=1))
    # The newest checkpoint is damaged, so the one before it is taken.
    newest = stopped / "checkpoints" / "checkpoint-4" / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    command(*given, "--output", str(stopped), "--resume")
    assert (stopped / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    for file in (whole / "model" / "unet").iterdir():
        assert (stopped / "model" / "unet" / file.name).read_bytes() == file.read_bytes()


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop a run of a loop as Ctrl-C does, in the middle of a round."""
    seed = torch.manual_seed

    def seeded(number: int) -> torch.Generator:
        if number == step:
            raise KeyboardInterrupt
        return seed(number)

    monkeypatch.setattr(torch, "manual_seed", seeded)


def test_a_negative_model_learns_what_is_disliked(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFKIT_CACHE", str(tmp_path / "cache"))
    data = parquet(tmp_path)
    given = ["train", "--model", folders["sd"], "--data", data, *FAST, *settings(data__held_out=0.0, report__samples=0)]
    command(*given, "--output", str(tmp_path / "run"), *settings(negative=True, training__epochs=2))
    options = {"path": str(tmp_path / "run" / "model"), "reference": folders["sd"]}
    scorer = d.load_pipeline(d.PipelineOptions.parse(options))
    assert evaluate(scorer, load_comparisons(data), reference=True).summary["reward_margin"].mean < 0


def test_pairs_by_path_and_a_missing_caption(folders: dict[str, str], tmp_path: Path) -> None:
    (bright, dark), *_ = colours(1)
    (tmp_path / "a.png").write_bytes(bright)
    (tmp_path / "b.png").write_bytes(dark)
    rows = [
        {"prompt": "a cat", "chosen_image": "a.png", "rejected_image": "b.png"},
        {"prompt": "", "chosen_image": "a.png", "rejected_image": "b.png"},
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    loaded = load_comparisons(str(file))
    (comparison,) = loaded
    assert loaded.format == "image_pairs"
    assert [(bad.line, bad.field) for bad in loaded.skipped] == [(2, "prompt")]
    scorer = d.load_pipeline(folders["pixels"])
    x0 = scorer.collate([scorer.encode(comparison)])["x0"]
    assert x0[0].mean() > 0 > x0[1].mean()


def clip(folder: Path) -> str:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text = {"vocab_size": 54, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                "num_attention_heads": 2, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1,
                "pad_token_id": 1}  # fmt: skip
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                  "image_size": 16, "patch_size": 8}  # fmt: skip
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def test_a_clip_model_scores_as_transformers_does(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip")
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = d.make_scorer(f"clip:{path}")(images, ["a cat", "the dog"])
    model, tokens = (
        CLIPModel.from_pretrained(path),
        tiny.tokenizer()(["a cat", "the dog"], padding=True, return_tensors="pt"),
    )
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).reshape(1, 3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).reshape(1, 3, 1, 1)
    logits = model(**tokens, pixel_values=((images + 1) / 2 - mean) / std).logits_per_image.diagonal()
    torch.testing.assert_close(found, logits.detach() / model.logit_scale.exp().item(), atol=1e-5, rtol=1e-4)
    with pytest.raises(OptionError, match="a scorer is named clip:FOLDER"):
        d.make_scorer("brightness")
    with pytest.raises(OptionError, match="cannot be loaded"):
        d.make_scorer(f"clip:{tmp_path / 'none'}")
