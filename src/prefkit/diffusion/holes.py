"""Files of images with holes: those that are to be filled in, and fillings that people have rated."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from prefkit.comparisons.containers import read_rows
from prefkit.comparisons.rows import Row
from prefkit.diffusion.images import read_image, to_tensor
from prefkit.errors import RecordError

T = TypeVar("T")

_WHITE = 125 / 127.5 - 1
"""From this grey on, a mask means that a pixel is to be filled in; 125 of 255, as in PrefPaint's code."""


class Hole(NamedTuple):
    """An image with a hole.

    Args:
        image: in [-1, 1].
        mask: 1 where it is to be filled in, else 0.
        caption: what the filling is to show; empty without one.
        line: where it stands in its file.
    """

    image: Float[Tensor, "3 height width"]
    mask: Float[Tensor, "1 height width"]
    caption: str
    line: int


class RatedFilling(NamedTuple):
    """A filled-in image that people have rated.

    Args:
        filled: the filled-in image, in [-1, 1].
        hole: the image with the hole blacked out.
        score: of people.
        group: fillings of the same hole belong to one group.
        line: where it stands in its file.
    """

    filled: Float[Tensor, "3 height width"]
    hole: Float[Tensor, "3 height width"]
    score: float
    group: str
    line: int


def read_holes(path: Path, side: int, limit: int | None = None) -> Iterator[Hole | RecordError]:
    """Images to be filled in: columns `image`, `mask` (white where it is to be filled in) and, if wanted, `caption`.

    Args:
        path: JSON Lines, Parquet or another table; images are bytes or paths relative to it.
        side: height and width to which images are brought.
        limit: of rows.

    Yields:
        A hole, or what is wrong with its row.

    Raises:
        PrefkitError: the file cannot be read.
    """

    def hole(row: Row) -> Hole:
        image, mask = (read_image(row.need(name), folder=path.parent, field=name) for name in ("image", "mask"))
        if image.size != mask.size:
            sizes = " and ".join(f"{width} x {height}" for width, height in (image.size, mask.size))
            raise row.error(f"image and mask are of different sizes, {sizes}", "mask")
        white = (to_tensor(mask, (side, side), 1) >= _WHITE).float()
        if not bool(white.any()):
            raise row.error("nothing is white in the mask, so there is nothing to fill in", "mask")
        caption = "" if row.missing("caption") else row.text("caption")
        return Hole(to_tensor(image, (side, side)), white, caption, row.line or 0)

    return _each(path, hole, limit)


def read_rated_fillings(path: Path, side: int, limit: int | None = None) -> Iterator[RatedFilling | RecordError]:
    """Rated fillings, in PrefPaint's columns: `inpaint`, `mask_rgb` (the image with the hole blacked out), `score`, and
    `img_id`, without which fillings of the same `mask_rgb` belong together.

    Args:
        path: JSON Lines, Parquet or another table; images are bytes or paths relative to it.
        side: height and width to which images are brought.
        limit: of rows.

    Yields:
        A filling, or what is wrong with its row.

    Raises:
        PrefkitError: the file cannot be read.
    """

    def filling(row: Row) -> RatedFilling:
        filled, hole = (
            to_tensor(read_image(row.need(name), folder=path.parent, field=name), (side, side))
            for name in ("inpaint", "mask_rgb")
        )
        group = row.name("img_id") or hashlib.sha256(hole.numpy().tobytes()).hexdigest()
        return RatedFilling(filled, hole, row.number("score"), group, row.line or 0)

    return _each(path, filling, limit)


def blacked_out(
    images: Float[Tensor, "batch 3 height width"], masks: Float[Tensor, "batch 1 height width"]
) -> Float[Tensor, "batch 3 height width"]:
    """Images in [-1, 1] whose holes are black, as the reward model sees them."""
    return torch.where(masks > 0.5, -1.0, images)


def _each(path: Path, read: Callable[[Row], T], limit: int | None) -> Iterator[T | RecordError]:
    for count, (number, fields) in enumerate(read_rows(path)):
        if limit is not None and count >= limit:
            return
        try:
            yield read(_row(fields, path, number))
        except RecordError as error:
            yield RecordError(error.problem, field=error.field, source=str(path), line=number)


def _row(fields: Mapping[str, Any] | RecordError, path: Path, number: int) -> Row:
    if isinstance(fields, RecordError):
        raise fields
    return Row(fields, str(path), number)
