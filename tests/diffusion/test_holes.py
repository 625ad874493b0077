from __future__ import annotations

import json
from pathlib import Path

import torch

from prefkit import diffusion as d
from prefkit.errors import RecordError
from tests.diffusion.digits import png


def written(folder: Path, *rows: dict[str, str]) -> Path:
    (folder / "image.png").write_bytes(png(torch.zeros(1, 16, 16)))
    mask = torch.full((1, 16, 16), -1.0)
    mask[:, :8] = 1
    (folder / "mask.png").write_bytes(png(mask))
    (folder / "small.png").write_bytes(png(mask[:, :8]))
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\nno row\n")
    return file


def test_holes_and_what_is_wrong_with_their_rows(tmp_path: Path) -> None:
    good = {"image": "image.png", "mask": "mask.png"}
    bad = [{**good, "mask": "small.png"}, {**good, "image": "none.png"}, {"image": "image.png"}]
    file = written(tmp_path, {**good, "caption": "a cat"}, good, *bad)
    first, second, *rest = d.read_holes(file, 8)
    assert isinstance(first, d.Hole)
    assert isinstance(second, d.Hole)
    assert (first.caption, first.line, second.caption) == ("a cat", 1, "")
    assert first.image.shape == (3, 8, 8)
    assert first.mask[0, :4].eq(1).all()
    assert first.mask[0, 4:].eq(0).all()
    assert all(isinstance(row, RecordError) for row in rest)
    problems = [str(row) for row in rest]
    for problem, expected in zip(
        problems,
        [
            "rows.jsonl:3: field 'mask': image and mask are of different sizes, 16 x 16 and 16 x 8",
            "rows.jsonl:4: field 'image': there is no image",
            "rows.jsonl:5: field 'mask': is missing",
            "rows.jsonl:6: ",
        ],
        strict=True,
    ):
        assert expected in problem
    assert len(list(d.read_holes(file, 8, limit=1))) == 1


def test_the_hole_is_black_in_what_the_reward_sees() -> None:
    images, masks = torch.full((1, 3, 4, 4), 0.5), torch.zeros(1, 1, 4, 4)
    masks[..., :2] = 1
    seen = d.blacked_out(images, masks)
    assert seen[..., :2].eq(-1).all()
    assert seen[..., 2:].eq(0.5).all()


def test_fillings_without_an_id_belong_together_by_their_hole(tmp_path: Path) -> None:
    rows = [{"inpaint": name, "mask_rgb": hole, "score": "4.5"} for name in ("image.png", "mask.png") for hole in (
        "image.png", "mask.png")]  # fmt: skip
    found = [row for row in d.read_rated_fillings(written(tmp_path, *rows), 8) if isinstance(row, d.RatedFilling)]
    groups = [row.group for row in found]
    assert groups[0] == groups[2] != groups[1] == groups[3]
    assert [row.score for row in found] == [4.5] * 4
