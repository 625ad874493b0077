"""Pipelines of `diffusers`: from a folder or hub name to a scorer, and from a trained denoiser back to a folder.

A pipeline's VAE and text encoders are used once, when comparisons are encoded; what they give is kept on disk, so that
an update of the model runs its denoiser alone.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import Field
from torch import Tensor, nn

from prefkit.comparisons import Comparison
from prefkit.diffusion.images import caption_of, images_of, needs
from prefkit.diffusion.schedules import Prediction, Schedule
from prefkit.diffusion.scorer import (
    DiffusionScorer,
    ScoreOptions,
    as_bytes,
    from_bytes,
    key_of,
)
from prefkit.errors import OptionError, RecordError, unknown
from prefkit.objectives import Encoded
from prefkit.options import Options

INDEX = "model_index.json"
"""File by which a folder is known as that of a pipeline."""

_PREDICTIONS: Mapping[str, Prediction] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}


class AdapterOptions(Options):
    """A low-rank adapter (Hu et al., 2021) that is trained instead of the denoiser's own weights."""

    rank: int = Field(8, ge=1, description="rank of the update of each matrix")
    alpha: float = Field(8.0, gt=0, description="scale of the update, alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the adapter")
    targets: list[str] = Field(["to_q", "to_k", "to_v", "to_out.0"], description="ends of the names of the layers")


class PipelineOptions(Options):
    """Which pipeline, how it is loaded, and how its images are scored."""

    kind: Literal["diffusion"] = Field("diffusion", description="a pipeline of diffusers")
    path: str = Field(description="folder or hub name of the pipeline")
    reference: str | None = Field(
        None, description="folder or hub name of the reference; the policy as loaded, if none"
    )
    revision: str | None = Field(None, description="branch, tag or commit of a hub name")
    variant: str | None = Field(
        None, description="which weight files, such as `fp16`; the plain ones by default, or the only ones"
    )
    reference_revision: str | None = Field(None, description="branch, tag or commit of the reference")
    reference_variant: str | None = Field(None, description="which weight files of the reference")
    lora: AdapterOptions | None = Field(None, description="train an adapter of this shape; None trains all weights")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="type in which weights are loaded")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="`bf16` computes products in bfloat16")
    resolution: int | None = Field(None, ge=8, description="height and width of images; the pipeline's by default")
    same_size: bool = Field(True, description="refuse images of different sizes in one comparison")
    posterior: Literal["sample", "mean"] = Field("sample", description="latents drawn from the posterior, or its mean")
    cache_dtype: Literal["float32", "float16"] = Field("float16", description="numbers of the latents on disk")
    zero_snr: bool = Field(False, description="rescale the schedule to a terminal signal of 0")
    scores: ScoreOptions = Field(default_factory=ScoreOptions, description="how images are noised and scored")


def is_pipeline(path: str, revision: str | None = None) -> bool:
    """Whether a folder, or a hub name, is that of a pipeline.

    Offline (`HF_HUB_OFFLINE`) a hub name is looked up in the hub's local cache only.

    Args:
        path: folder or hub name.
        revision: branch, tag or commit of a hub name.
    """
    return Path(path, INDEX).is_file() or _hub_index(path, revision) is not None


def _hub_index(path: str, revision: str | None) -> Path | None:
    """The index of a pipeline on the hub, in the local cache; None if the name is not that of one."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    if Path(path).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        return None
    # A model of language that is there already is not asked for.
    if isinstance(try_to_load_from_cache(path, "config.json", revision=revision), str):
        return None
    try:
        return Path(hf_hub_download(path, INDEX, revision=revision))
    except (OSError, ValueError):
        return None


class PipelineDenoiser(nn.Module):
    """The denoiser of a pipeline, called as all denoisers are: `denoiser(x_t, t, cond)`.

    Args:
        model: a UNet or a transformer of diffusers.
        times: what the model is told of each step of the schedule, `[steps]`.

    Raises:
        OptionError: the class is not known.
    """

    def __init__(self, model: nn.Module, times: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("times", times, persistent=False)
        self.kind = type(model).__name__
        if self.kind not in _CALLS:
            raise OptionError(f"denoisers of the class {self.kind} are not known; known: {', '.join(sorted(_CALLS))}")

    def forward(self, x_t: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """The prediction, in the model's own form."""
        times: Tensor = self.get_buffer("times")
        dtype = next(self.model.parameters()).dtype
        given = {name: value.to(dtype) if value.is_floating_point() else value for name, value in cond.items()}
        out: Tensor = _CALLS[self.kind](self.model, x_t.to(dtype), times[t], given).sample
        # Models that also predict a variance have twice as many channels; the losses are of the first half.
        return out if out.shape == x_t.shape else out[:, : x_t.shape[1]]


def _conditional_unet(model: Any, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Any:
    if "masked" in cond:
        # An inpainting model sees the hole and what is around it beside the state.
        x = torch.cat([x, cond["mask"], cond["masked"]], 1)
    added = {"text_embeds": cond["pooled"], "time_ids": cond["time_ids"]} if "time_ids" in cond else None
    return model(x, t, encoder_hidden_states=cond["prompt"], added_cond_kwargs=added)


def _unet(model: Any, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Any:
    return model(x, t, class_labels=cond.get("label"))


def _sd3(model: Any, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Any:
    return model(hidden_states=x, timestep=t, encoder_hidden_states=cond["prompt"], pooled_projections=cond["pooled"])


def _dit(model: Any, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Any:
    return model(x, timestep=t, class_labels=cond["label"])


_CALLS = {
    "UNet2DConditionModel": _conditional_unet,
    "UNet2DModel": _unet,
    "SD3Transformer2DModel": _sd3,
    "DiTTransformer2DModel": _dit,
}
"""How each class of denoiser takes what it is told."""


class PipelineCodec:
    """Latents and conditions of comparisons, by the VAE and the text encoders of a pipeline.

    Args:
        pipeline: a pipeline of diffusers.
        resolution: height and width of the images.
        same_size: refuse images of different sizes in one comparison.
        posterior: keep the spread of the VAE's posterior, to draw latents from it in training.
        dtype: numbers of what is kept.
    """

    def __init__(
        self,
        pipeline: Any,
        resolution: int,
        *,
        same_size: bool = True,
        posterior: bool = True,
        dtype: torch.dtype = torch.float16,
    ) -> None:
        self.pipeline, self.resolution, self.same_size = pipeline, resolution, same_size
        self.vae = getattr(pipeline, "vae", None)
        self.posterior, self.dtype = posterior and self.vae is not None, dtype
        self.labels: dict[str, int] | None = getattr(pipeline, "labels", None)
        self._encoders = [
            part for name, part in pipeline.components.items() if name.startswith("text_encoder") and part is not None
        ]
        self.device = torch.device("cpu")
        self._known: dict[str, dict[str, Tensor]] = {}
        model = denoiser_of(pipeline)
        channels = int(model.config.in_channels if self.vae is None else self.vae.config.latent_channels)
        self.inpainting = int(model.config.in_channels) == 2 * channels + 1
        side = resolution // _scale(self.vae)
        self.shape = (channels, side, side)
        for part in (self.vae, *self._encoders):
            if part is not None:
                part.requires_grad_(False)
                part.eval()
        self._empty = self._condition("")

    def wake(self, device: torch.device) -> None:
        """Go where the denoiser is, before comparisons are encoded."""
        if device != self.device:
            self.device = device
            for part in (self.vae, *self._encoders):
                if part is not None:
                    part.to(device)

    def rest(self) -> None:
        """Make room on the device: nothing is encoded in training."""
        self.wake(torch.device("cpu"))

    def encode(self, comparison: Comparison) -> dict[str, Any]:
        """See `Codec.encode`.

        Raises:
            RecordError: an image cannot be read, its latents are not finite, or a caption is no label of the model.
        """
        caption = caption_of(comparison.prompt_of(0))
        channels = self.shape[0] if self.vae is None else int(self.vae.config.in_channels)
        size = (self.resolution, self.resolution)
        images = torch.stack(images_of(comparison, size, channels, same_size=self.same_size))
        if self.inpainting:
            raise RecordError(
                "this pipeline fills in holes, and comparisons of images have no masks; see inpainting_condition"
            )
        mean, std = self._latents(images)
        bad = [place for place, one in enumerate(mean) if not bool(torch.isfinite(one.to(self.dtype)).all())]
        if bad:
            raise RecordError(
                f"the VAE gives latents that are not finite numbers in {self.dtype}; load it in float32, or set "
                "model.cache_dtype=float32",
                field=f"responses[{bad[0]}]",
            )
        samples = [as_bytes(one, self.dtype) for one in mean]
        encoded: dict[str, Any] = {"key": key_of(caption, *samples), "samples": samples}
        if std is not None:
            encoded["spread"] = [as_bytes(one, self.dtype) for one in std]
        for name, value in self._condition(caption).items():
            encoded[f"cond {name}"] = as_bytes(value, _kept(value, self.dtype))
        return encoded

    def collate(self, encoded: Sequence[Encoded]) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """See `Codec.collate`."""

        def stack(name: str) -> Tensor:
            return torch.stack([from_bytes(one, self.shape, self.dtype) for item in encoded for one in item[name]])

        cond = {}
        for name, like in self._empty.items():
            kept = [from_bytes(item[f"cond {name}"], like.shape, _kept(like, self.dtype)) for item in encoded]
            cond[name] = torch.stack(kept).to(like.dtype)
        return stack("samples"), stack("spread") if self.posterior else None, cond

    def empty(self) -> dict[str, Tensor]:
        """See `Codec.empty`."""
        return self._empty

    def key(self) -> str:
        """See `Codec.key`."""
        found = hashlib.sha256()
        for part in (self.vae, *self._encoders):
            if part is not None:
                config = part.config.to_dict() if hasattr(part.config, "to_dict") else dict(part.config)
                found.update(json.dumps(config, default=str, sort_keys=True).encode())
                for name, tensor in part.state_dict().items():
                    found.update(name.encode())
                    found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return f"pipeline {self.resolution} {self.same_size} {self.posterior} {self.dtype} {found.hexdigest()}"

    @torch.no_grad()
    def _latents(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.vae is None:
            return images, None
        found = self.vae.encode(images.to(self.device, self.vae.dtype)).latent_dist
        scale, shift = _scaling(self.vae)
        mean = (found.mean.float() - shift) * scale
        return mean, found.std.float() * scale if self.posterior else None

    def latents(self, images: Tensor) -> Tensor:
        """Latents of images in [-1, 1], the mean of the posterior."""
        self.wake(self.device)
        return self._latents(images)[0].to(self.device)

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Images in [-1, 1] of clean samples."""
        if self.vae is None:
            return x.clamp(-1, 1)
        scale, shift = _scaling(self.vae)
        images: Tensor = self.vae.decode((x.to(self.vae.device, self.vae.dtype) / scale) + shift).sample
        return images.float().clamp(-1, 1)

    def condition(self, caption: str) -> dict[str, Tensor]:
        """What the denoiser is told of a caption, without a batch.

        Raises:
            RecordError: the caption is no label of the model.
        """
        return self._condition(caption)

    @torch.no_grad()
    def _condition(self, caption: str) -> dict[str, Tensor]:
        if caption in self._known:
            return self._known[caption]
        if len(self._known) >= 256:
            # Captions come in runs; the empty one is kept apart.
            self._known.clear()
        found = self._known[caption] = {name: value.cpu() for name, value in self._told(caption).items()}
        return found

    def _told(self, caption: str) -> dict[str, Tensor]:
        if self.labels is not None or _classes(self.pipeline):
            return {"label": torch.tensor(self._label(caption))}
        if not self._encoders:
            return {}
        # A caption goes to every text encoder that there is.
        parameters = inspect.signature(self.pipeline.encode_prompt).parameters
        others = [name for name in ("prompt_2", "prompt_3") if name in parameters]
        found = self.pipeline.encode_prompt(
            prompt=caption,
            **dict.fromkeys(others),
            device=self.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        told = {"prompt": found[0][0]}
        if len(found) == 4:
            told["pooled"] = found[2][0]
        if getattr(denoiser_of(self.pipeline).config, "addition_embed_type", None) == "text_time":
            side = float(self.resolution)
            told["time_ids"] = torch.tensor([side, side, 0.0, 0.0, side, side])
        return told

    def _label(self, caption: str) -> int:
        classes = _classes(self.pipeline)
        if caption == "":
            return classes
        label = (self.labels or {}).get(caption, int(caption) if caption.isdecimal() else -1)
        if not 0 <= label < classes:
            known = ", ".join(list(self.labels or {})[:8]) or f"numbers from 0 to {classes - 1}"
            raise RecordError(f"the model knows no label '{caption:.40}'; it knows {known}", field="prompt")
        return label


def load_pipeline(options: PipelineOptions | str, *, seed: int = 0) -> DiffusionScorer:
    """Load a pipeline as a scorer.

    Args:
        options: see `PipelineOptions`; a string stands for its `path`.
        seed: fixes the draws, and the first weights of an adapter.

    Raises:
        OptionError: it cannot be found or loaded, lacks a part, or is of a kind that is not known.
        PrefkitError: diffusers is not installed.
    """
    if isinstance(options, str):
        options = PipelineOptions(path=options)
    pipeline = read_pipeline(options.path, dtype=options.dtype, revision=options.revision, variant=options.variant)
    schedule, times = schedule_of(pipeline, zero_snr=options.zero_snr)
    denoiser: nn.Module = PipelineDenoiser(denoiser_of(pipeline), times)
    reference = None
    if options.reference is not None:
        other = read_pipeline(
            options.reference,
            dtype=options.dtype,
            revision=options.reference_revision,
            variant=options.reference_variant,
        )
        reference = PipelineDenoiser(denoiser_of(other), times).requires_grad_(False)
    if options.lora is not None:
        denoiser = _with_adapter(denoiser, options.lora, seed)
    codec = PipelineCodec(
        pipeline,
        options.resolution or _resolution(pipeline),
        same_size=options.same_size,
        posterior=options.posterior == "sample",
        dtype=getattr(torch, options.cache_dtype),
    )
    return DiffusionScorer(
        denoiser,
        schedule,
        codec,
        reference,
        options=options.scores,
        precision=options.precision,
        seed=seed,
        writer=partial(_write, pipeline),
    )


def read_pipeline(path: str, *, dtype: str = "float32", revision: str | None = None, variant: str | None = None) -> Any:
    """A pipeline of diffusers, of weights in safetensors alone, and without its safety checker.

    Args:
        path: folder or hub name.
        dtype: type in which weights are loaded.
        revision: branch, tag or commit of a hub name.
        variant: which weight files, see `PipelineOptions`.

    Raises:
        OptionError: it cannot be found or loaded, or lacks a part.
        PrefkitError: diffusers is not installed.
    """
    try:
        from diffusers import DiffusionPipeline
        from diffusers.utils.logging import disable_progress_bar
    except ImportError as error:
        raise needs("diffusers") from error

    folder = Path(path) if Path(path).is_dir() else _fetched(path, revision, variant)
    if not is_pipeline(str(folder)):
        raise OptionError(f"{path} is no pipeline: there is no {INDEX} in it")
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    parts = {name: value for name, value in index.items() if isinstance(value, list) and value[0] is not None}
    missing = [name for name in parts if name not in _UNUSED and not (folder / name).is_dir()]
    if missing:
        raise OptionError(f"the pipeline {path} lacks its {', '.join(missing)}: there is no such folder in it")
    if ("unet" in parts or "transformer" in parts) and "vae" not in parts and index["_class_name"] not in _PIXELS:
        raise OptionError(f"the pipeline {path} has no vae, without which its latents cannot be made")
    if "scheduler" not in parts:
        raise OptionError(f"the pipeline {path} has no scheduler, which says how its images are noised")
    absent = [name for name, value in index.items() if isinstance(value, list) and value[0] is None]
    without: dict[str, Any] = dict.fromkeys([*absent, *(name for name in _UNUSED if name in index)])
    disable_progress_bar()
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            variant=_variant(path, folder, parts, variant),
            use_safetensors=True,
            **without,
        )
    except (OSError, ValueError, AttributeError, ImportError) as error:
        raise OptionError(f"the pipeline '{path}' cannot be loaded: {_first_line(error)}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _fetched(path: str, revision: str | None, variant: str | None) -> Path:
    """Folder of a pipeline of the hub, in its local cache; what is missing is fetched, unless offline."""
    from diffusers import DiffusionPipeline
    from huggingface_hub import constants

    index = _hub_index(path, revision)
    if index is None:
        where = "in the hub's cache (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else "on the hub"
        raise OptionError(
            f"the pipeline '{path}' cannot be loaded: there is no such folder, and no pipeline of that name {where}"
        )
    if constants.HF_HUB_OFFLINE:
        return index.parent
    unused: dict[str, Any] = dict.fromkeys(_UNUSED)
    try:
        return Path(
            DiffusionPipeline.download(path, revision=revision, variant=variant, use_safetensors=True, **unused)
        )
    except (OSError, ValueError) as error:
        raise OptionError(f"the pipeline '{path}' cannot be fetched: {_first_line(error)}") from error


def _variant(path: str, folder: Path, parts: Mapping[str, Any], wanted: str | None) -> str | None:
    """Which weight files of a folder to load: those that are wanted, the plain ones, or the only ones.

    Raises:
        OptionError: there are none of the variant, or several but no plain ones.
    """
    names = [file.name for part in ("unet", "transformer") if part in parts for file in (folder / part).iterdir()]
    matches = [_WEIGHTS.fullmatch(name) for name in names]
    found = {match["variant"] for match in matches if match is not None}
    if wanted in found or not found:
        return wanted
    if wanted is None and len(found) == 1:
        return next(iter(found))
    known = ", ".join(sorted(each or "plain ones" for each in found))
    problem = f"no weights of the variant '{wanted}'" if wanted else "no plain weights, and several variants"
    raise OptionError(f"model.variant: the pipeline {path} has {problem}; it has {known}")


_WEIGHTS = re.compile(r"diffusion_pytorch_model(\.(?P<variant>\w+))?(-\d+-of-\d+)?\.safetensors")

_UNUSED = ("safety_checker", "feature_extractor")
"""Parts that score nothing."""

_PIXELS = ("DDPMPipeline", "DDIMPipeline")
"""Pipelines whose denoiser works on pixels."""


def denoiser_of(pipeline: Any) -> Any:
    """The UNet or the transformer of a pipeline.

    Raises:
        OptionError: it has neither.
    """
    for name in ("unet", "transformer"):
        if getattr(pipeline, name, None) is not None:
            return getattr(pipeline, name)
    raise OptionError(f"{type(pipeline).__name__} has neither a unet nor a transformer")


def schedule_of(pipeline: Any, *, zero_snr: bool = False) -> tuple[Schedule, Tensor]:
    """The noise of a pipeline's training steps, and what its denoiser is told of each.

    Raises:
        OptionError: the scheduler's prediction type is not known, or it has no training schedule.
    """
    scheduler = pipeline.scheduler
    config, name = scheduler.config, type(scheduler).__name__
    steps = int(config.get("num_train_timesteps", 1000))
    if "FlowMatch" in name:
        schedule = Schedule.flow_matching(steps, float(config.get("shift", 1.0)))
        return schedule.to("cpu", torch.float32), (schedule.sigmas * steps).float()
    kind = config.get("prediction_type", "epsilon")
    if kind not in _PREDICTIONS:
        raise OptionError(f"{name}: {unknown('prediction type', str(kind), _PREDICTIONS)}")
    cumulative = getattr(scheduler, "alphas_cumprod", None)
    if cumulative is None:
        raise OptionError(f"{name} has no schedule of training steps; use DDPM, DDIM or a flow-matching scheduler")
    if zero_snr:
        betas = scheduler.betas.double()
        found = Schedule.from_betas(betas, _PREDICTIONS[kind], zero_snr=True)
    else:
        found = Schedule.from_alphas_cumprod(cumulative.double(), _PREDICTIONS[kind])
    return found.to("cpu", torch.float32), torch.arange(steps)


def _with_adapter(denoiser: nn.Module, options: AdapterOptions, seed: int) -> PeftModel:
    config = LoraConfig(
        r=options.rank, lora_alpha=options.alpha, lora_dropout=options.dropout, target_modules=options.targets
    )
    try:
        # peft draws the adapter's first weights from torch's own generator.
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return get_peft_model(denoiser, config)
    except ValueError as error:
        raise OptionError(f"model.lora.targets: {_first_line(error)}") from error


def _write(pipeline: Any, folder: Path, denoiser: nn.Module) -> None:
    """Write a pipeline with the trained denoiser; an adapter is merged into it, and also lies beside it."""
    if isinstance(denoiser, PeftModel):
        denoiser.save_pretrained(str(folder / "adapter"))
        denoiser = copy.deepcopy(denoiser).merge_and_unload()
    name = "unet" if getattr(pipeline, "unet", None) is not None else "transformer"
    before = getattr(pipeline, name)
    try:
        setattr(pipeline, name, denoiser.model)
        pipeline.save_pretrained(str(folder), safe_serialization=True)
    finally:
        setattr(pipeline, name, before)
    if labels := getattr(pipeline, "labels", None):
        # diffusers reads the names of labels from the index, but does not write them.
        names: dict[str, list[str]] = {}
        for label, number in labels.items():
            names.setdefault(str(number), []).append(label)
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        index["id2label"] = {number: ", ".join(each) for number, each in names.items()}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _classes(pipeline: Any) -> int:
    """Number of classes of a class-conditional denoiser; 0 for others."""
    config = denoiser_of(pipeline).config
    if type(denoiser_of(pipeline)).__name__ == "DiTTransformer2DModel":
        return int(config.num_embeds_ada_norm)
    return int(config.get("num_class_embeds") or 0) if "encoder_hid_dim" not in config else 0


def _scale(vae: Any) -> int:
    return 1 if vae is None else int(2 ** (len(vae.config.block_out_channels) - 1))


def _scaling(vae: Any) -> tuple[float, float]:
    return float(vae.config.scaling_factor), float(vae.config.get("shift_factor") or 0.0)


def _resolution(pipeline: Any) -> int:
    side = denoiser_of(pipeline).config.sample_size
    if side is None:
        raise OptionError("the pipeline does not say the size of its images: set model.resolution")
    return int(side) * _scale(getattr(pipeline, "vae", None))


def _kept(value: Tensor, dtype: torch.dtype) -> torch.dtype:
    """How a condition is kept: labels as they are."""
    return dtype if value.is_floating_point() else value.dtype


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
