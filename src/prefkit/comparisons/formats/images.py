"""Comparisons of images for one caption. An image stays what the file holds (bytes, path or URL), as a message part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prefkit.comparisons.formats.base import Format, has
from prefkit.comparisons.record import Comparison, Judgement, Text
from prefkit.comparisons.rows import TIE, A, B, Row, as_list, assistant, ranking
from prefkit.errors import RecordError
from prefkit.options import Options


def image(content: Any) -> Text:
    """An image as a response: an assistant message with one image part."""
    return assistant([{"type": "image", "image": content}])


def _picture(row: Row, index: int) -> Any:
    for column in (f"jpg_{index}", f"image_{index}_url", f"image_{index}_uid"):
        if row.get(column):
            return row[column]
    raise row.error("is missing, and so are its URL and id", f"jpg_{index}")


_PICKAPIC = ("caption", "jpg_0", "jpg_1", "label_0", "label_1", "user_id", "ranking_id")


def _pickapic(row: Row, options: Options) -> Iterator[Comparison]:
    if row.get("has_label") is False:
        raise row.error("no judgement: the row has no label", "has_label")
    if row.get("are_different") is False:
        raise row.error("the two images are equal; there is no preference between them", "are_different")
    first, second = row.number("label_0"), row.number("label_1")
    if (first, second) not in ((1, 0), (0, 1), (0.5, 0.5)):
        raise row.error(
            f"label_0 and label_1 must be 1 and 0, 0 and 1, or 0.5 twice, got {first:g}, {second:g}", "label_0"
        )
    yield Comparison(
        (row.text("caption"),),
        (image(_picture(row, 0)), image(_picture(row, 1))),
        A if first == 1 else B if second == 1 else TIE,
        annotator=row.name("user_id"),
        id=row.name("ranking_id"),
        extra=row.rest(*_PICKAPIC),
        **row.place,
    )


_SIDES = (("chosen_image", "rejected_image"), ("image_chosen", "image_rejected"))


def _sides(row: Mapping[str, Any]) -> tuple[str, str] | None:
    return next((sides for sides in _SIDES if all(side in row for side in sides)), None)


def _pair(row: Row, options: Options) -> Iterator[Comparison]:
    chosen, rejected = _sides(row) or _SIDES[0]
    caption = "caption" if "caption" in row else "prompt"
    yield Comparison.pair(
        row.text(caption),
        image(row.need(chosen)),
        image(row.need(rejected)),
        annotator=row.name("annotator"),
        id=row.name("id"),
        extra=row.rest(caption, chosen, rejected, "annotator", "id"),
        **row.place,
    )


def _hpd(row: Row, options: Options) -> Iterator[Comparison | RecordError]:
    column = _image_column(row)
    images = row.list_of(column or "image_path")
    marked = row.list_of("human_preference") if not row.missing("human_preference") else None
    ranks = row.list_of("rank") if not row.missing("rank") else row.list_of("ranking") if "ranking" in row else None
    judgement: Judgement
    if ranks is not None:
        judgement = _ranks(row, ranks, images, "rank" if "rank" in row else "ranking")
    elif marked is not None and len(marked) == len(images) == 2:
        if sorted(marked) != [0, 1]:
            raise row.error(f"must mark one of two images with 1, got {marked}", "human_preference")
        judgement = A if marked[0] == 1 else B
    else:
        raise row.error("no judgement: needs human_preference for two images, or rank", "human_preference")
    prompts, answers = (row.text("prompt"),), tuple(image(path) for path in images)
    extra = row.rest("prompt", column or "", "human_preference", "rank", "ranking", "id", "raw_annotations")
    more: dict[str, Any] = {"id": row.name("id"), "extra": extra, **row.place}
    votes = row.objects("raw_annotations") if row.get("raw_annotations") else []
    if not votes:
        yield Comparison(prompts, answers, judgement, **more)
    for vote in votes:
        try:
            verdict = _ranks(vote, vote.list_of("rank"), images, "rank")
            yield Comparison(prompts, answers, verdict, annotator=vote.name("user_hash"), **more)
        except RecordError as error:
            yield error


def _ranks(row: Row, ranks: list[Any], images: list[Any], field: str) -> Judgement:
    if len(ranks) != len(images):
        raise row.error(f"{len(ranks)} ranks for {len(images)} images", field)
    return ranking([row.nested({"rank": rank}, field).number("rank") for rank in ranks])


def _image_column(row: Mapping[str, Any]) -> str | None:
    columns = ("image_path", "file_path", "images")
    return next((name for name in columns if as_list(row.get(name)) is not None), None)


FORMATS = (
    Format(
        "pickapic",
        "`caption`, `label_0`, `label_1`, `jpg_0` or image ids",
        "1 and 0, 0 and 1, 0.5 twice: tie",
        has("caption", "label_0", "label_1"),
        _pickapic,
    ),
    Format(
        "image_pairs",
        "`caption` or `prompt`, `chosen_image` and `rejected_image`: bytes, paths, or `{bytes, path}`",
        "the column says it",
        lambda row: ("caption" in row or "prompt" in row) and _sides(row) is not None,
        _pair,
    ),
    Format(
        "hpd",
        "`prompt`, `image_path` (or `file_path`, `images`) list, `human_preference`, `rank` or `ranking` list",
        "1 marks the winner; a lower rank is better, equal ranks tie",
        lambda row: (
            "prompt" in row
            and _image_column(row) is not None
            and any(as_list(row.get(name)) is not None for name in ("human_preference", "rank", "ranking"))
        ),
        _hpd,
    ),
)
