"""A tiny model of digits in pixels, and comparisons of them in which more ink is preferred."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

from prefkit import diffusion as d
from prefkit.comparisons import Comparison
from prefkit.comparisons.formats.images import image
from prefkit.comparisons.rows import user

CAPTIONS = tuple(f"the digit {number}" for number in range(10))
SCHEDULE = d.Schedule.from_betas(d.linear_betas(50, 1e-3, 0.25)).to("cpu", torch.float32)


class PixelNet(nn.Module):
    """A perceptron on 8 x 8 pixels, step and caption."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.caption = nn.Embedding(len(CAPTIONS) + 1, width)
        self.time = nn.Linear(2, width)
        self.first, self.second, self.last = nn.Linear(64, width), nn.Linear(width, width), nn.Linear(width, 64)

    def forward(self, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        phase = t[:, None] / SCHEDULE.steps
        given = self.caption(cond["caption"]) + self.time(torch.cat([phase, phase**2], 1))
        hidden = nn.functional.silu(self.first(x_t.flatten(1)) + given)
        return self.last(hidden + nn.functional.silu(self.second(hidden) + given)).reshape(x_t.shape)


def digits() -> tuple[Tensor, Tensor]:
    found = load_digits()
    pixels = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1
    return pixels, torch.tensor(found.target)


@lru_cache(maxsize=2)
def pretrained(updates: int = 400) -> PixelNet:
    """Do not change it."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PixelNet()
    pixels, labels = digits()
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(updates):
        place = torch.randint(len(pixels), (256,), generator=generator)
        t = torch.randint(SCHEDULE.steps, (256,), generator=generator)
        states = d.noised(pixels[place], t, torch.randn(256, 1, 8, 8, generator=generator), SCHEDULE)
        caption = labels[place].where(torch.rand(256, generator=generator) > 0.1, torch.tensor(10))
        optimiser.zero_grad()
        d.denoising_error(model(states.x_t, t, {"caption": caption}), states.target).mean().backward()
        optimiser.step()
    return model.requires_grad_(False)


def png(pixels: Tensor) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(((pixels[0] + 1) * 127.5).round().to(torch.uint8).numpy()).save(stream, "PNG")
    return stream.getvalue()


def comparisons(count: int, seed: int = 0, **more: Any) -> list[Comparison]:
    """Pairs of images of one digit, the one with more ink first."""
    generator = torch.Generator().manual_seed(seed)
    pixels, labels = digits()
    found = []
    for line in range(1, count + 1):
        number = int(torch.randint(10, (1,), generator=generator))
        own = (labels == number).nonzero()[:, 0]
        first, second = own[torch.randperm(len(own), generator=generator)[:2]].tolist()
        if pixels[first].mean() < pixels[second].mean():
            first, second = second, first
        pair = (image(png(pixels[place])) for place in (first, second))
        found.append(Comparison.pair(user(CAPTIONS[number]), *pair, source="digits.parquet", line=line, **more))
    return found


def scorer(options: dict[str, Any] | None = None, **more: Any) -> d.DiffusionScorer:
    import copy

    model = copy.deepcopy(pretrained()).requires_grad_(True)
    given = d.ScoreOptions.parse({"draws": 8, **(options or {})})
    return d.DiffusionScorer(model, SCHEDULE, d.PixelCodec((8, 8), 1, CAPTIONS), options=given, **more)


def drawn(model: nn.Module, count: int, seed: int = 0) -> Tensor:
    """Samples, the digits in turn."""
    generator = torch.Generator().manual_seed(seed)
    caption = torch.arange(count) % 10
    noise = torch.randn(count, 1, 8, 8, generator=generator)
    return d.sample(model, noise, SCHEDULE, cond={"caption": caption}, eta=1.0, clamp=1.0, generator=generator).sample


def saved(folder: Path, pixels: Tensor, name: str) -> str:
    (folder / name).write_bytes(png(pixels))
    return name
