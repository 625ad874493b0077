"""The documentation is built, names everything that is public, and its examples import what exists."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = [
    "assets",
    "comparisons",
    "diagnostics",
    "diffusion",
    "language",
    "objectives",
    "preference",
    "recipes",
    "report",
    "selection",
    "training",
]
PAGES = sorted([*ROOT.glob("docs/**/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names in the API reference of the built site."""
    pytest.importorskip("mkdocstrings", reason="the documentation needs the extra 'docs'")
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    # An inventory is four lines of text, and then one compressed line a name.
    listed = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    return {line.split()[0] for line in listed.splitlines()}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_api_reference(package: str, documented: set[str]) -> None:
    module = importlib.import_module(f"prefkit.{package}")
    missing = []
    for name in module.__all__:
        # A function that is named like the module it lives in is listed under both names.
        home = getattr(getattr(module, name), "__module__", None)
        if not {f"prefkit.{package}.{name}", f"{home}.{name}"} & documented:
            missing.append(name)
    assert missing == []


def examples() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)):
            found.append((f"{page.relative_to(ROOT)}:{number}", code))
    return found


@pytest.mark.parametrize("code", [pytest.param(code, id=name) for name, code in examples()])
def test_examples_import_what_exists(code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("prefkit"):
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name), f"{node.module} has no {name.name}"


def test_pages_load_nothing_from_elsewhere() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    assert re.search(r"^  font: false$", text, re.MULTILINE)
    assert not re.search(r"https?://", text)
