"""The runtime is fed by the manifest: it looks for no name of a family, a variant or a text encoder."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
APART = {"bundle/schema1.py", "lora/foreign.py"}
"""What may know a family: the reader of bundles that had but one, and the table of other models' names."""
NAMES = {
    "clip",
    "t5",
    "dev",
    "krea",
    "schnell",
    "kontext",
    "depth",
    "klein",
    "flux1",
    "flux2",
    "flux3",
    "mistral",
}
NAMES |= {"qwen", "flux.1", "flux.2", "flux.3"}
"""The variants Fill and Canny are not among them: `fill` is a task, and `canny` makes edges."""
FAMILY = re.compile(r"\bFLUX\.?[123]\b|\b(kontext|schnell|krea|klein)\b", re.IGNORECASE)
FILES = sorted(path for path in (ROOT / "runtime").rglob("*.py"))


def named(path):
    return path.relative_to(ROOT / "runtime").as_posix()


def docstrings(tree):
    """Constants that are documentation: of modules, classes, functions and attributes."""
    return {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def looked_at(tree):
    """What decides something: comparisons, `match`, subscripts, and the arguments of `get` and the like."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            yield from (node.left, *node.comparators)
        elif isinstance(node, ast.Match):
            yield node.subject
        elif isinstance(node, ast.Subscript):
            yield node.slice
        elif isinstance(node, (ast.If, ast.IfExp, ast.While)):
            yield node.test
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield from node.args if node.func.attr in ("get", "startswith", "endswith", "index") else ()


@pytest.mark.parametrize("path", [path for path in FILES if named(path) not in APART], ids=named)
def test_no_family_and_no_variant_is_looked_for(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documentation = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            assert node.value.lower() not in NAMES, f"line {node.lineno}"
            assert not FAMILY.search(node.value), f"line {node.lineno}: {node.value}"
        if isinstance(node, (ast.Name, ast.Attribute, ast.FunctionDef, ast.ClassDef)):
            name = getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "name", "")
            assert not set(name.lower().split("_")) & NAMES, f"line {node.lineno}: {name}"
    for part in looked_at(tree):
        labels = [
            node for node in ast.walk(part) if isinstance(node, ast.Attribute) and node.attr == "variant"
        ]
        assert not labels, f"line {labels[0].lineno}: the variant is a label for people"


EXPORTER = [
    path
    for path in sorted((ROOT / "exporter").rglob("*.py"))
    if not re.match(r"families/(flux\d|catalogue|recognise)", path.relative_to(ROOT / "exporter").as_posix())
    and path.relative_to(ROOT / "exporter").as_posix() not in ("checkpoints/foreign.py", "options.py")
]
"""All but the families' own folders, the two lists of families, the table of other models' names, and the
table of what people have that `build --help` shows."""
VARIANTS = NAMES - {"clip", "t5"} | {"canny", "fill", "dedistilled"}
"""Parts of checkpoints may be called by their names: text encoders are shared by families and files."""


@pytest.mark.parametrize("path", EXPORTER, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_exporter_looks_for_none_outside_of_the_families(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documentation = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            assert node.value.lower() not in VARIANTS, f"line {node.lineno}"
            assert not FAMILY.search(node.value), f"line {node.lineno}: {node.value}"
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            assert not re.search(r"\bflux\d", ast.unparse(node)), f"line {node.lineno}"


def test_files_are_named_for_what_they_do():
    assert len(FILES) > 30
    assert not [named(path) for path in FILES if set(path.stem.split("_")) & (NAMES | {"canny"})]


def test_the_names_would_be_found():
    found = list(looked_at(ast.parse('if manifest.variant == "x": pass\ntable[other.variant]\n')))
    attributes = [node.attr for part in found for node in ast.walk(part) if isinstance(node, ast.Attribute)]
    assert attributes.count("variant") == 3
