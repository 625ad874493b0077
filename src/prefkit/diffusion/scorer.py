"""The scorer of denoisers: how good is each image? Minus the error with which it is denoised.

Step and noise are drawn anew in every pass, so policy and reference are scored in one go, on the same draws. The draws
follow from the seed, the update and the pair alone: a run that is resumed, or spread over other batches, has the same.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prefkit.comparisons import Comparison
from prefkit.diffusion.followers import follower
from prefkit.diffusion.guidance import guided
from prefkit.diffusion.images import caption_of, images_of
from prefkit.diffusion.losses import Convention, denoising_error, score_of
from prefkit.diffusion.noising import InversionOptions, Latents, noised
from prefkit.diffusion.sampling import predicting_noise
from prefkit.diffusion.schedules import Schedule, few_step_times, offset_noise, refiner_times
from prefkit.errors import OptionError, PrefkitError, RecordError
from prefkit.objectives import Encoded, Inputs, ResponseScores
from prefkit.options import Options

Conditions = Mapping[str, Tensor]
"""What a denoiser is told beside the noised sample and its step, by name, one entry a sample."""

_COND = "cond "
_EVALUATION = "evaluation"


class Codec(Protocol):
    """From comparisons to clean samples and conditions, once, before training."""

    def encode(self, comparison: Comparison) -> dict[str, Any]:
        """What is kept of a comparison, see `prefkit.objectives.Encoded`.

        Raises:
            RecordError: it cannot be encoded.
        """
        ...

    def collate(self, encoded: Sequence[Encoded]) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """Clean samples of all responses, the spread of their posterior if they have one, and a condition each
        comparison."""
        ...

    def empty(self) -> dict[str, Tensor]:
        """The condition of an empty prompt, without a batch."""
        ...

    def key(self) -> str:
        """A digest of everything that decides what is kept."""
        ...

    def wake(self, device: torch.device) -> None:
        """Comparisons will be encoded: be where the denoiser is."""
        ...

    def rest(self) -> None:
        """Training begins, and nothing is encoded in it."""
        ...


class ScoreOptions(Options):
    """How samples are noised and scored."""

    convention: Convention = Field("released", description="what beta means: `released`, `diffusers` or `paper`")
    latents: Latents = Field("forward", description="states by random noise, `ddim` inversion, or `renoise`")
    inversion: InversionOptions = Field(default_factory=InversionOptions, description="how samples are inverted")
    inverter: Literal["policy", "reference"] = Field("policy", description="which of them inverts")
    inversion_guidance: float = Field(1.0, description="guidance scale in the inversion; 1 is none")
    shared_noise: bool = Field(True, description="one draw of noise a comparison; False: one a sample")
    weighting: Literal["constant", "snr", "min_snr"] = Field("constant", description="omega(t) of the scores")
    snr_cap: float = Field(5.0, gt=0, description="greatest weight of `min_snr`")
    times: Literal["all", "few_step", "refiner"] = Field("all", description="steps that are drawn")
    first_step: int | None = Field(None, ge=0, description="least step; 0 by default, 1 for inverted states")
    last_step: int | None = Field(None, ge=0, description="greatest step; the last one by default")
    noise_offset: float = Field(0.0, ge=0, description="scale of a random mean of the noise in each channel")
    input_perturbation: float = Field(0.0, ge=0, description="scale of noise that is added to states only")
    empty_prompts: float = Field(0.2, ge=0, le=1, description="share of prompts that are left out in training")
    draws: int = Field(4, ge=1, description="draws of step and noise when a model is evaluated")


class _States(NamedTuple):
    """Noised samples of a batch: `[draws x responses, ...]`."""

    x_t: Tensor
    target: Tensor
    t: Tensor
    cond: dict[str, Tensor]
    draws: int


class DiffusionScorer(nn.Module):
    """Scores images by minus their denoising error.

    Args:
        denoiser: predicts as `denoiser(x_t, t, cond)`, t being a step of the schedule; with or without an adapter.
        schedule: noise of every step, and what is predicted.
        codec: from comparisons to samples.
        reference: a frozen denoiser. Without one, the reference is the denoiser without its adapter, or a copy of it
            that is made when training begins.
        options: how samples are noised and scored.
        precision: `bf16` computes matrix products in bfloat16.
        seed: fixes the draws.
        writer: writes the trained denoiser to a folder; by default its weights in `denoiser.safetensors`.

    Raises:
        OptionError: an option does not fit the schedule, or the reference is to be trained.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        schedule: Schedule,
        codec: Codec,
        reference: nn.Module | None = None,
        *,
        options: ScoreOptions | None = None,
        precision: Literal["fp32", "bf16"] = "fp32",
        seed: int = 0,
        writer: Callable[[Path, nn.Module], None] | None = None,
    ) -> None:
        super().__init__()
        self.denoiser, self.schedule, self.codec = denoiser, schedule, codec
        self.options, self.precision, self.seed = options or ScoreOptions(), precision, seed
        if reference is not None and any(weight.requires_grad for weight in reference.parameters()):
            raise OptionError("the reference is frozen: its weights must not require gradients")
        # The reference is no submodule: it is not trained or saved with the denoiser.
        self._reference = () if reference is None else (reference.eval(),)
        self._writer = writer or _write_weights
        self._untrained = _versions(denoiser)
        self._blank = (_without_weights(denoiser),)
        # What FSDP2 shards as one.
        self._no_split_modules = getattr(_plain(denoiser), "_no_split_modules", None)
        self._beside = False
        self._adapters = [layer for layer in denoiser.modules() if isinstance(layer, BaseTunerLayer)]
        self._fickle = any(isinstance(each, _BatchNorm) or getattr(each, "p", 0) > 0 for each in denoiser.modules())
        self._step: int | None = None
        inverted = self.options.latents != "forward"
        low = self.options.first_step if self.options.first_step is not None else int(inverted)
        high = schedule.steps if self.options.last_step is None else self.options.last_step + 1
        if not low < high <= schedule.steps:
            raise OptionError(
                f"first_step and last_step must lie within 0 and {schedule.steps - 1}, got {low} and {high - 1}"
            )
        if inverted and low == 0:
            raise OptionError(f"latents: {self.options.latents} needs first_step of at least 1")
        if inverted and schedule.prediction == "flow":
            raise OptionError(f"latents: {self.options.latents} needs a variance-preserving schedule")
        if self.options.times == "few_step" and schedule.steps != 1000:
            raise OptionError(f"times: few_step is made for 1000 steps, this schedule has {schedule.steps}")
        self._range = (low, high)

    # -- what loops ask of a scorer ---------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return next(self.denoiser.parameters()).device

    def provide(self, needs: frozenset[str]) -> None:
        """See `Scorer.provide`.

        Raises:
            OptionError: something is needed; images have scores only.
        """
        if needs:
            raise OptionError(f"scores of images have no {', '.join(sorted(needs))}")

    def use_reference(self, wanted: bool) -> None:
        """Score the reference beside the policy from now on, or not; see `objectives.DrawsNoise`."""
        self._beside = wanted
        if wanted and not self._reference and not isinstance(self.denoiser, PeftModel):
            self.refresh_reference()

    def begin(self, step: int) -> None:
        """An update of the model begins; see `objectives.DrawsNoise`."""
        if self._step is None:
            self.codec.rest()
        self._step = step

    def encode(self, comparison: Comparison) -> Encoded:
        """Clean samples and condition of a comparison.

        Raises:
            RecordError: see `Codec.encode`, or the captions differ.
        """
        if comparison.joint:
            raise RecordError("images are compared for one caption, got one each", field="prompts")
        self.codec.wake(self.device)
        return self.codec.encode(comparison)

    def collate(self, encoded: Sequence[Encoded]) -> dict[str, Tensor]:
        """A batch: `x0` `[responses, ...]`, `owner` (its comparison), `key` of each comparison, and conditions."""
        x0, spread, cond = self.codec.collate(encoded)
        counts = torch.tensor([len(item["samples"]) for item in encoded])
        inputs = {
            "x0": x0,
            "owner": torch.repeat_interleave(torch.arange(len(encoded)), counts),
            "key": torch.tensor([item["key"] for item in encoded]),
            **{_COND + name: tensor for name, tensor in cond.items()},
        }
        return inputs if spread is None else {**inputs, "spread": spread}

    def forward(self, inputs: Inputs) -> ResponseScores:
        """Scores of all samples under the policy, and under the reference if that is asked for."""
        states = self._states(inputs)
        ref = None
        if self._beside:
            with torch.no_grad(), self._as_reference() as frozen:
                ref = self._scores(frozen, states)
        return ResponseScores(self._scores(self.denoiser, states), self._lengths(inputs), ref_logps=ref)

    @torch.no_grad()
    def reference(self, inputs: Inputs) -> ResponseScores:
        """The same under the frozen reference.

        Raises:
            PrefkitError: there is none, and the policy has been trained.
        """
        states = self._states(inputs)
        with self._as_reference() as frozen:
            return ResponseScores(self._scores(frozen, states), self._lengths(inputs))

    def encoding_key(self) -> str:
        """A digest of everything that decides how comparisons are encoded."""
        return self.codec.key()

    def reference_key(self) -> str:
        """A digest of the reference's weights and of how it scores."""
        found = hashlib.sha256(f"{self.precision} {self.options.model_dump_json()}".encode())
        with self._as_reference() as frozen:
            for name, tensor in frozen.state_dict().items():
                found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return found.hexdigest()

    def refresh_reference(self, *, keep: bool = False) -> None:
        """Make the policy, as it is now, the frozen reference; see `Scorer.refresh_reference`."""
        if keep and (self._reference or isinstance(self.denoiser, PeftModel)):
            return
        self._reference = (follower(self.denoiser),)

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write the trained model to a folder.

        Args:
            folder: where to write.
            state: the module's full state, where this process holds only a shard of it.
        """
        denoiser = self.denoiser
        if state is not None:
            denoiser = copy.deepcopy(self._blank[0])
            denoiser.load_state_dict(
                {name.removeprefix("denoiser."): part for name, part in state.items()}, assign=True
            )
        folder.mkdir(parents=True, exist_ok=True)
        self._writer(folder, denoiser)

    @property
    def supports_gradient_checkpointing(self) -> bool:
        """Whether the denoiser can compute activations again."""
        return hasattr(_plain(self.denoiser), "enable_gradient_checkpointing")

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Compute activations again in the backward pass instead of keeping them."""
        model: Any = _plain(self.denoiser)
        model.enable_gradient_checkpointing()

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # Where the policy goes, its reference goes, too.
        for reference in self._reference:
            reference._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch has no types here
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch has no types here
        return self

    # -- scores -----------------------------------------------------------------------------------------------------

    def _scores(self, denoiser: nn.Module, states: _States) -> Tensor:
        with self._autocast():
            prediction = denoiser(states.x_t, states.t, states.cond)
        paper = self.options.convention == "paper"
        error = denoising_error(prediction.float(), states.target, reduction="sum" if paper else "mean")
        scores = score_of(error, convention=self.options.convention, steps=self.schedule.steps)
        if self.options.weighting != "constant":
            snr = self.schedule.snr.to(scores.device, scores.dtype)[states.t]
            scores = scores * (snr.clamp(max=self.options.snr_cap) if self.options.weighting == "min_snr" else snr)
        return scores.reshape(states.draws, -1).mean(0)

    def _lengths(self, inputs: Inputs) -> Tensor:
        dims = inputs["x0"][0].numel() if self.options.convention == "paper" else 1
        return torch.full((len(inputs["x0"]),), dims, device=inputs["x0"].device)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    @contextlib.contextmanager
    def _as_reference(self) -> Iterator[nn.Module]:
        if self._reference:
            yield self._reference[0]
        elif isinstance(self.denoiser, PeftModel):
            # The tree of modules is large, and an update is short: it is not walked where nothing depends on it.
            training = self.denoiser.training and self._fickle
            if training:
                self.denoiser.eval()
            for layer in self._adapters:
                layer.enable_adapters(False)
            try:
                yield self.denoiser
            finally:
                for layer in self._adapters:
                    layer.enable_adapters(True)
                if training:
                    self.denoiser.train()
        elif _versions(self.denoiser) == self._untrained:
            yield self.denoiser
        else:
            raise PrefkitError("the policy has been trained since it was loaded; give a reference model")

    @torch.no_grad()
    def _states(self, inputs: Inputs) -> _States:
        """Draw steps, noise and empty prompts, and make the states."""
        x0, owner, options = inputs["x0"], inputs["owner"], self.options
        draws = 1 if self.training else options.draws
        drawn = [self._draw(inputs, number, draws) for number in range(draws)]
        names = drawn[0].keys()
        together = {name: torch.cat([each[name] for each in drawn]).to(x0.device) for name in names}
        t, noise = together["t"], together["noise"]
        x0 = x0.repeat(draws, *[1] * (x0.ndim - 1))
        if self.training and "spread" in inputs:
            x0 = x0 + inputs["spread"] * together["posterior"]
        empty = {name: tensor.to(x0.device) for name, tensor in self.codec.empty().items()}
        cond = {}
        for name, nothing in empty.items():
            given = inputs[_COND + name][owner].repeat(draws, *[1] * (inputs[_COND + name].ndim - 1))
            dropped = together["dropped"].reshape(-1, *[1] * (given.ndim - 1))
            cond[name] = torch.where(dropped, nothing.to(given.dtype).expand_as(given), given)
        x_t, target = noised(
            x0,
            t,
            noise,
            self.schedule,
            latents=options.latents,
            model=None if options.latents == "forward" else self._inverting(empty),
            cond=cond,
            inversion=options.inversion,
            inversion_noise=together["inversion"].transpose(0, 1) if "inversion" in together else None,
            perturbation=together.get("perturbation"),
        )
        return _States(x_t, target, t, cond, draws)

    def _inverting(self, empty: Mapping[str, Tensor]) -> Callable[[Tensor, Tensor, Any], Tensor]:
        scale = self.options.inversion_guidance

        def model(x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
            # Published grids begin before step 0.
            t = t.clamp(min=0)
            reference = self._as_reference() if self.options.inverter == "reference" else None
            with reference or contextlib.nullcontext(self.denoiser) as denoiser, self._autocast():
                noise = predicting_noise(denoiser, self.schedule)
                eps = noise(x_t, t, cond).float()
                if scale != 1:
                    nothing = {name: empty[name].to(value.dtype).expand_as(value) for name, value in cond.items()}
                    eps = guided(eps, noise(x_t, t, nothing).float(), scale)
            return eps

        return model

    def _draw(self, inputs: Inputs, number: int, draws: int) -> dict[str, Tensor]:
        """One draw of everything random, entry by entry: the numbers of a comparison depend on no other."""
        options, shape = self.options, inputs["x0"].shape[1:]
        counts = torch.bincount(inputs["owner"].cpu(), minlength=len(inputs["key"])).tolist()
        parts: dict[str, list[Tensor]] = {}
        for key, count in zip(inputs["key"].tolist(), counts, strict=True):
            generator = self._generator(key, number)

            def normal(*size: int, generator: torch.Generator = generator) -> Tensor:
                return torch.randn(*size, generator=generator)

            own = {
                "t": self._time(generator, number, draws).expand(count),
                "dropped": torch.rand(1, generator=generator).lt(options.empty_prompts * self.training).expand(count),
                "noise": normal(1 if options.shared_noise else count, *shape).expand(count, *shape),
            }
            if options.noise_offset:
                mean = normal(own["noise"].shape[0] if not options.shared_noise else 1, shape[0], *[1] * len(shape[1:]))
                own["noise"] = offset_noise(own["noise"], options.noise_offset, mean)
            if options.input_perturbation:
                own["perturbation"] = options.input_perturbation * normal(count, *shape)
            if "spread" in inputs and self.training:
                own["posterior"] = normal(count, *shape)
            if options.latents != "forward" and options.inversion.eta:
                own["inversion"] = normal(count, options.inversion.steps, *shape)
            for name, values in own.items():
                parts.setdefault(name, []).append(values)
        return {name: torch.cat(values) for name, values in parts.items()}

    def _time(self, generator: torch.Generator, number: int, draws: int) -> Tensor:
        low, high = self._range
        # Draws of one evaluation are spread over the steps.
        place = (number + torch.rand(1, generator=generator, dtype=torch.float64)) / draws
        t = (low + place * (high - low)).long().clamp(max=high - 1)
        if self.options.times == "few_step":
            return few_step_times(t)
        return refiner_times(t) if self.options.times == "refiner" else t

    def _generator(self, key: int, number: int) -> torch.Generator:
        when = (self._step or 0) if self.training else _EVALUATION
        digest = hashlib.sha256(f"{self.seed} {when} {key} {number}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class PixelCodec:
    """Images as they are, for denoisers of pixels; the condition is the place of the caption in a list.

    Args:
        size: height and width.
        channels: 1 or 3.
        captions: those that the denoiser knows; None for a denoiser without a condition. The empty caption is
            `len(captions)`.
        same_size: refuse images of different sizes in one comparison.
    """

    def __init__(
        self,
        size: tuple[int, int],
        channels: int = 1,
        captions: Sequence[str] | None = None,
        *,
        same_size: bool = True,
    ) -> None:
        self.size, self.channels, self.same_size = size, channels, same_size
        self.captions = None if captions is None else {name: place for place, name in enumerate(captions)}

    def encode(self, comparison: Comparison) -> dict[str, Any]:
        """See `Codec.encode`.

        Raises:
            RecordError: an image cannot be read, or the caption is not known.
        """
        caption = caption_of(comparison.prompt_of(0))
        samples = [as_bytes(x) for x in images_of(comparison, self.size, self.channels, same_size=self.same_size)]
        encoded: dict[str, Any] = {"key": key_of(caption, *samples), "samples": samples}
        if self.captions is not None:
            if caption not in self.captions:
                known = ", ".join(list(self.captions)[:10])
                raise RecordError(f"the model knows no '{caption:.40}'; it knows {known}", field="prompt")
            encoded["caption"] = self.captions[caption]
        return encoded

    def collate(self, encoded: Sequence[Encoded]) -> tuple[Tensor, None, dict[str, Tensor]]:
        """See `Codec.collate`."""
        shape = (self.channels, *self.size)
        x0 = torch.stack([from_bytes(one, shape) for item in encoded for one in item["samples"]])
        known = self.captions is not None
        return x0, None, {"caption": torch.tensor([item["caption"] for item in encoded])} if known else {}

    def empty(self) -> dict[str, Tensor]:
        """See `Codec.empty`."""
        return {} if self.captions is None else {"caption": torch.tensor(len(self.captions))}

    def key(self) -> str:
        """See `Codec.key`."""
        return f"pixels {self.size} {self.channels} {self.same_size} {list(self.captions or ())}"

    def wake(self, device: torch.device) -> None:
        """Nothing to do."""

    def rest(self) -> None:
        """Nothing to do."""


def as_bytes(x: Tensor, dtype: torch.dtype = torch.float32) -> bytes:
    """A tensor as the cache keeps it."""
    return x.detach().to("cpu", dtype).contiguous().flatten().view(torch.uint8).numpy().tobytes()


def from_bytes(kept: bytes, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor that `as_bytes` kept, in float32."""
    return torch.frombuffer(bytearray(kept), dtype=dtype).reshape(tuple(shape)).float()


def key_of(caption: str, *samples: bytes) -> int:
    """A number that tells a comparison from others, whatever its place in the data."""
    found = hashlib.sha256(caption.encode())
    for one in samples:
        found.update(one)
    return int.from_bytes(found.digest()[:8], "little") >> 1


def _write_weights(folder: Path, denoiser: nn.Module) -> None:
    save_file(
        {name: tensor.contiguous() for name, tensor in denoiser.state_dict().items()}, folder / "denoiser.safetensors"
    )


def _without_weights(model: nn.Module) -> nn.Module:
    """The same modules without numbers in them: a model that is sharded cannot be copied any more."""
    blank: dict[int, Any] = {
        id(weight): nn.Parameter(weight.detach().to("meta"), requires_grad=weight.requires_grad)
        for weight in model.parameters()
    }
    return copy.deepcopy(model, blank)


def _versions(model: nn.Module) -> tuple[int, ...]:
    """Counters that change with every change of a weight in place."""
    return tuple(weight._version for weight in model.parameters())


def _plain(model: nn.Module) -> nn.Module:
    """The denoiser without adapter and wrapper."""
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    found: nn.Module = getattr(inner, "model", inner)
    return found
