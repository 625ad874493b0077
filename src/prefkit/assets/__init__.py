"""The built-in default: a tiny language model and human comparisons that it can learn from, without a network.

`scripts/build_assets.py` makes them; `LICENSES.md` beside this file says where the text comes from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

__all__ = [
    "comparisons_path",
    "model_path",
]

_FOLDER = Path(__file__).parent


def model_path() -> Path:
    """Folder of the built-in language model, as `from_pretrained` takes it.

    It is a Llama of 2.1 million parameters with its own tokenizer, chat template and a context of 512 tokens. It is
    stored in bfloat16 and loads as float32.
    """
    return _FOLDER / "model"


def comparisons_path(split: Literal["train", "test"]) -> Path:
    """File of the built-in comparisons: gzip-compressed JSON lines with `prompt`, `chosen` and `rejected`.

    Args:
        split: `train`, or the held-out `test`, which is about other debates than `train`.
    """
    return _FOLDER / f"{split}.jsonl.gz"
