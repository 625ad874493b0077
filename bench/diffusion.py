"""Diffusion-DPO against the research script of diffusers: `python -m bench --diffusion SCRIPT`.

Both train the same adapter on the same small pipeline and the same pairs, each program in a process of its own,
alternately. The script runs as it is: the time of each of its steps is taken where it reports its losses.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.machinery
import io
import json
import resource
import runpy
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from prefkit.report import Table

SIDE = 256
STEPS, WARM = 16, 4
BATCH, RANK, BETA, RATE = 4, 4, 2500, 5e-4
CAPTIONS = ("a red fox", "a quiet harbour", "two cups of tea", "an old bridge")
SPEED, MEMORY = 1.3, 1.0
"""Targets: times the script's steps/s, and share of its memory."""

LABELS = {
    "steps_per_s": "steps/s",
    "peak_rss_mb": "peak memory, MB",
    "reference_error": "mean error of the reference",
    "before_s": "seconds before the end of the first step",
}


def compare(
    script: Path, python: Path, folder: Path, run: Callable[[list[Any]], dict[str, Any]], repeats: int
) -> Table:
    """Paired runs of the script and of prefkit.

    Args:
        script: `train_diffusion_dpo.py`.
        python: the interpreter that runs it.
        folder: where the pipeline and the pairs are made.
        run: runs a command and gives what its last line says.
        repeats: paired runs.
    """
    make_workload(folder)
    ours, theirs = [], []
    for _ in range(repeats):
        ours.append(run([sys.executable, "-m", "bench.diffusion", "ours", folder]))
        theirs.append(run([python, "-m", "bench.diffusion", "script", folder, "--script", script.absolute()]))
    rows = []
    for name, target in (("steps_per_s", SPEED), ("peak_rss_mb", MEMORY)):
        ratios = [a[name] / b[name] for a, b in zip(ours, theirs, strict=True)]
        middle = statistics.median(ratios)
        met = middle >= target if name == "steps_per_s" else middle <= target
        rows.append(
            [
                LABELS[name],
                *(round(statistics.median(each[name] for each in runs), 2) for runs in (ours, theirs)),
                f"{middle:.2f}x ({', '.join(f'{ratio:.2f}' for ratio in sorted(ratios))})",
                f"{target}x",
                "yes" if met else "no",
            ]
        )
    for name in ("reference_error", "before_s"):
        found = (round(statistics.median(each[name] for each in runs), 3) for runs in (ours, theirs))
        rows.append([LABELS[name], *found, "", "", ""])
    columns = ["figure", "prefkit", "script", "ratio, median (paired runs)", "target", "met"]
    return Table(columns, rows, f"Diffusion-DPO, {BATCH} pairs a step, fp32")


def make_workload(folder: Path) -> None:
    """A pipeline as deep as Stable Diffusion 1.5 and an eighth as wide, and pairs in Pick-a-Pic's columns."""
    import diffusers
    import pyarrow as pa
    import pyarrow.parquet as pq
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    if (folder / "pairs" / "train.parquet").is_file():
        return
    torch.manual_seed(0)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    widths = (40, 80, 160, 160)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(
            block_out_channels=(16, 32, 64, 64),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            norm_num_groups=8,
            latent_channels=4,
            sample_size=SIDE,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokens),
                hidden_size=96,
                intermediate_size=384,
                num_hidden_layers=12,
                num_attention_heads=4,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
            )
        ),
        tokenizer=CLIPTokenizer(
            vocab={token: place for place, token in enumerate(tokens)}, merges=[], model_max_length=77
        ),
        unet=diffusers.UNet2DConditionModel(
            sample_size=SIDE // 8,
            block_out_channels=widths,
            down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
            up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
            layers_per_block=2,
            cross_attention_dim=96,
            attention_head_dim=2,
            norm_num_groups=8,
        ),
        scheduler=diffusers.DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder / "pipeline", safe_serialization=True)
    generator = torch.Generator().manual_seed(0)
    columns: dict[str, list[Any]] = {name: [] for name in ("caption", "jpg_0", "jpg_1", "label_0", "label_1")}
    for place in range(BATCH * STEPS):
        first = float(torch.rand(1, generator=generator) < 0.5)
        columns["caption"].append(CAPTIONS[place % len(CAPTIONS)])
        columns["label_0"].append(first)
        columns["label_1"].append(1 - first)
        for name in ("jpg_0", "jpg_1"):
            coarse = torch.rand(1, 3, 16, 16, generator=generator)
            smooth = interpolate(coarse, size=(SIDE, SIDE), mode="bicubic").clamp(0, 1)[0]
            stream = io.BytesIO()
            Image.fromarray((smooth * 255).to(torch.uint8).permute(1, 2, 0).numpy()).save(stream, "JPEG", quality=95)
            columns[name].append(stream.getvalue())
    (folder / "pairs").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / "pairs" / "train.parquet")


class Clock:
    """Takes the time whenever a method is called that a program calls once a step, and keeps what it is told.

    Args:
        owner: the class.
        name: the method.
    """

    def __init__(self, owner: Any, name: str) -> None:
        self.times: list[float] = []
        self.logs: list[dict[str, float]] = []
        self.begun, called = time.perf_counter(), getattr(owner, name)

        def call(this: Any, logs: dict[str, float], *args: Any, **given: Any) -> Any:
            if "loss" in logs:
                self.times.append(time.perf_counter())
                self.logs.append(dict(logs))
            return called(this, logs, *args, **given)

        setattr(owner, name, call)

    def result(self, program: str, errors: list[float]) -> dict[str, Any]:
        """Steps a second after the first few, what went before, and the mean of the reference's errors."""
        assert len(self.times) == STEPS, f"{len(self.times)} steps were reported, not {STEPS}"
        return {
            "program": program,
            "steps_per_s": (STEPS - WARM) / (self.times[-1] - self.times[WARM - 1]),
            "before_s": self.times[0] - self.begun,
            "reference_error": statistics.mean(errors),
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


def ours(folder: Path) -> dict[str, Any]:
    """prefkit, as a user would run it, with the script's hyperparameters."""
    from prefkit.comparisons import load_comparisons
    from prefkit.diffusion import PipelineOptions, load_pipeline
    from prefkit.objectives import make_objective
    from prefkit.training import TrainingOptions, fit
    from prefkit.training.trainer import PreferenceTrainer

    clock = Clock(PreferenceTrainer, "log")
    options = {
        "path": str(folder / "pipeline"),
        "lora": {"rank": RANK, "alpha": RANK},
        # The script scores the captions of all pairs.
        "scores": {"convention": "diffusers", "empty_prompts": 0.0},
    }
    training = TrainingOptions(
        max_steps=STEPS,
        batch_size=BATCH,
        learning_rate=RATE,
        weight_decay=0.01,
        schedule="constant",
        warmup=0,
        log_every=1,
        save_every=0,
        progress=False,
    )
    scorer, errors = load_pipeline(PipelineOptions.parse(options)), []
    scorer.register_forward_hook(lambda _, given, scores: errors.append(-float(scores.ref_logps.mean())))
    with tempfile.TemporaryDirectory() as temporary:
        fit(
            scorer,
            load_comparisons(str(folder / "pairs" / "train.parquet")),
            make_objective({"kind": "dpo", "beta": BETA}),
            options=training,
            output=Path(temporary, "run"),
            cache=Path(temporary, "cache"),
        )
    return clock.result("prefkit", errors)


def script(folder: Path, path: Path) -> dict[str, Any]:
    """The script, with stand-ins for packages of which it needs little."""
    import diffusers
    import peft
    import transformers
    from accelerate import Accelerator

    # These look for torchvision themselves, so they come before the stand-in.
    assert all((peft, transformers, diffusers.StableDiffusionPipeline))
    _stand_in()
    clock = Clock(Accelerator, "log")
    with tempfile.TemporaryDirectory() as temporary:
        sys.argv = [
            str(path),
            *("--pretrained_model_name_or_path", str(folder / "pipeline"), "--dataset_name", str(folder / "pairs")),
            *("--dataset_split_name", "train", "--resolution", str(SIDE), "--no_hflip", "--seed", "0"),
            *("--train_batch_size", str(BATCH), "--max_train_steps", str(STEPS), "--lr_warmup_steps", "0"),
            *("--learning_rate", str(RATE), "--rank", str(RANK), "--beta_dpo", str(BETA)),
            *("--output_dir", str(Path(temporary, "out")), "--cache_dir", str(Path(temporary, "cache"))),
        ]
        runpy.run_path(str(path), run_name="__main__")
    return clock.result("script", [each["ref_loss"] for each in clock.logs])


def _stand_in() -> None:
    """Make `torchvision.transforms` and `wandb` importable where they are not."""
    if not _imports("torchvision.transforms"):
        whole, transforms = _module("torchvision"), _module("torchvision.transforms")
        modes = types.SimpleNamespace(BILINEAR=Image.Resampling.BILINEAR)
        parts = (Compose, Resize, CenterCrop, Lambda, ToTensor, Normalize)
        vars(transforms).update({part.__name__: part for part in parts}, InterpolationMode=modes)
        vars(whole)["transforms"] = transforms
    if not _imports("wandb"):
        _module("wandb")


def _imports(name: str) -> bool:
    """Whether a package can be imported; one of torchvision's that does not fit the torch beside it cannot."""
    try:
        importlib.import_module(name)
    except (ImportError, RuntimeError):
        package = name.partition(".")[0]
        for half in [each for each in sys.modules if each.partition(".")[0] == package]:
            del sys.modules[half]
        return False
    return True


def _module(name: str) -> types.ModuleType:
    made = sys.modules[name] = types.ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    return made


class Compose:
    def __init__(self, parts: list[Callable[[Any], Any]]) -> None:
        self.parts = parts

    def __call__(self, given: Any) -> Any:
        for part in self.parts:
            given = part(given)
        return given


class Resize:
    """The shorter side to a length."""

    def __init__(self, side: int, interpolation: Image.Resampling) -> None:
        self.side, self.interpolation = side, interpolation

    def __call__(self, image: Image.Image) -> Image.Image:
        scale = self.side / min(image.size)
        if scale == 1:
            return image
        return image.resize((round(image.width * scale), round(image.height * scale)), self.interpolation)


class CenterCrop:
    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, image: Image.Image) -> Image.Image:
        left, top = (image.width - self.side) // 2, (image.height - self.side) // 2
        return image.crop((left, top, left + self.side, top + self.side))


class Lambda:
    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, given: Any) -> Any:
        return self.function(given)


class ToTensor:
    def __call__(self, image: Image.Image) -> Tensor:
        flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        return flat.view(image.height, image.width, -1).permute(2, 0, 1).contiguous().float() / 255


class Normalize:
    def __init__(self, mean: list[float], std: list[float]) -> None:
        self.mean, self.std = (torch.tensor(each)[:, None, None] for each in (mean, std))

    def __call__(self, image: Tensor) -> Tensor:
        return (image - self.mean) / self.std


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", choices=("ours", "script"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--script", type=Path)
    args = parser.parse_args()
    print(json.dumps(ours(args.folder) if args.program == "ours" else script(args.folder, args.script)))


if __name__ == "__main__":
    main()
