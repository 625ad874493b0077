from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPModel

from prefkit import diffusion as d
from prefkit.diffusion.embedding import clip_pixels
from prefkit.errors import OptionError
from tests.diffusion.test_pipelines import clip


def test_embeddings_are_those_of_the_whole_model(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip")
    images = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1
    embedder = d.load_embedder(path)
    whole = CLIPModel.from_pretrained(path)
    seen = whole.vision_model(pixel_values=clip_pixels(images, 16)).pooler_output
    torch.testing.assert_close(embedder(images), whole.visual_projection(seen).detach())
    assert (embedder.size, embedder.side) == (8, 16)
    embedder.save(tmp_path / "half")
    torch.testing.assert_close(d.load_embedder(str(tmp_path / "half"))(images), embedder(images))
    with pytest.raises(OptionError, match="cannot be loaded"):
        d.load_embedder(str(tmp_path / "none"))
