"""Images of comparisons: from what a record holds (bytes, a path, an encoded text) to a tensor, or an error that says
what is wrong with it."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from prefkit.comparisons import Comparison, Text
from prefkit.errors import PrefkitError, RecordError

if TYPE_CHECKING:
    from PIL.Image import Image


def needs(package: str) -> PrefkitError:
    """The error for a package of the extra that is not installed."""
    return PrefkitError(f"{package} is not installed; diffusion pipelines need: pip install 'prefkit[diffusion]'")


def content_of(response: Text, field: str) -> Any:
    """What a response holds of its image: bytes, a path, or a mapping of both.

    Raises:
        RecordError: the response is text, or holds no image or several.
    """
    parts = [] if isinstance(response, str) else [part for message in response for part in _parts(message)]
    images = [part for part in parts if isinstance(part, Mapping) and part.get("type") == "image"]
    if len(images) != 1:
        raise RecordError(f"must be one image, got {len(images) or 'none'}", field=field)
    for name in ("image", "url", "path", "bytes"):
        if images[0].get(name) is not None:
            return images[0][name]
    raise RecordError("the image is missing", field=field)


def _parts(message: Mapping[str, Any]) -> list[Any]:
    content = message.get("content")
    return list(content) if isinstance(content, list | tuple) else []


def caption_of(prompt: Text) -> str:
    """The caption of a prompt, its messages' texts joined.

    Raises:
        RecordError: there is none.
    """
    if isinstance(prompt, str):
        text = prompt
    else:
        said: list[str] = []
        for message in prompt:
            if isinstance(message.get("content"), str):
                said.append(message["content"])
            said += [str(part["text"]) for part in _parts(message) if isinstance(part, Mapping) and part.get("text")]
        text = "\n".join(said)
    if not text.strip():
        raise RecordError("the caption is missing; images are compared for a caption", field="prompt")
    return text


def read_image(content: Any, *, folder: Path | None = None, field: str | None = None) -> Image:
    """An image, read whole.

    Args:
        content: bytes, a path, a `data:` text, an image of pillow, or a mapping with `bytes` or `path`.
        folder: where relative paths start.
        field: what errors name.

    Raises:
        RecordError: it cannot be read, or is cut off.
        PrefkitError: pillow is not installed.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise needs("pillow") from error

    if isinstance(content, Image.Image):
        return content
    if isinstance(content, Mapping):
        content = content.get("bytes") or content.get("path")
    if isinstance(content, str) and content.startswith("data:"):
        try:
            content = base64.b64decode(content.partition(",")[2], validate=True)
        except binascii.Error as error:
            raise RecordError(f"is no image in base64: {error}", field=field) from error
    if isinstance(content, str) and "://" in content:
        raise RecordError(f"{content:.80} is an address; images are not fetched, save them as files", field=field)
    source: Any
    if isinstance(content, bytes | bytearray):
        source = io.BytesIO(content)
    elif isinstance(content, str | Path):
        source = Path(content) if folder is None else folder / content
        if not source.is_file():
            raise RecordError(f"there is no image {source}", field=field)
    else:
        raise RecordError(f"must be the bytes or the path of an image, got {type(content).__name__}", field=field)
    try:
        with warnings.catch_warnings():
            # A small file that unpacks to a huge image is an attack or a mistake.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(source)
            image.load()
    except UnidentifiedImageError as error:
        raise RecordError("is no image that can be read", field=field) from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RecordError(f"the image is damaged or cut off: {error}", field=field) from error
    return image


def to_tensor(image: Image, size: tuple[int, int], channels: int = 3) -> Float[Tensor, "channels height width"]:
    """An image as numbers in [-1, 1]: its shorter side scaled, its centre cut out.

    Args:
        image: of any size and mode; transparency is laid over white.
        size: height and width.
        channels: 1 for grey, 3 for colours.
    """
    from PIL import Image

    if image.mode in ("RGBA", "LA", "P", "PA"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    height, width = size
    if image.size != (width, height):
        scale = max(width / image.width, height / image.height)
        scaled = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
        image = image.resize(scaled, Image.Resampling.BICUBIC)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    values = torch.from_numpy(np.array(image, dtype=np.float32)) / 127.5 - 1
    return values[None] if channels == 1 else values.permute(2, 0, 1).contiguous()


def to_arrays(x: Float[Tensor, "batch channels height width"]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Images as plots take them, `[batch, height, width]` or `[batch, height, width, 3]`, values in [0, 1]."""
    pixels = (x.detach().float().cpu().clamp(-1, 1) + 1) / 2
    return (pixels[:, 0] if x.shape[1] == 1 else pixels.permute(0, 2, 3, 1)).numpy()


def images_of(
    comparison: Comparison, size: tuple[int, int], channels: int, *, same_size: bool = True
) -> list[Float[Tensor, "channels height width"]]:
    """The images of a comparison. Paths are relative to the file that the comparison came from.

    Args:
        comparison: its responses are images.
        size: height and width.
        channels: 1 or 3.
        same_size: refuse images of different sizes.

    Raises:
        RecordError: an image cannot be read, or the sizes differ.
    """
    folder = Path(comparison.source).parent if comparison.source else None
    images = []
    for place, response in enumerate(comparison.responses):
        field = f"responses[{place}]"
        images.append(read_image(content_of(response, field), folder=folder, field=field))
    sizes = {image.size for image in images}
    if same_size and len(sizes) > 1:
        found = " and ".join(f"{width} x {height}" for width, height in sorted(sizes))
        raise RecordError(
            f"the images are of different sizes, {found}; model.same_size=false cuts all to {size[1]} x {size[0]}",
            field="responses",
        )
    return [to_tensor(image, size, channels) for image in images]
