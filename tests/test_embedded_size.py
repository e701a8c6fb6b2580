"""The embedded core stays small, and nobody but `import detectron2` reaches it."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
EMBEDDED = PROJECT / "sam_d2" / "embedded"
LIMIT = 6000
SOURCES = ("sam_d2", "configs", "experiments", "tools", "tests")
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def docstring_lines(tree):
    """Numbers of the lines that docstrings take up."""
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            found.update(range(first.lineno, first.end_lineno + 1))
    return found


def code_lines(text):
    """Lines with code: blank lines, comments and docstrings do not count, continued lines do."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstring_lines(ast.parse(text)))


def imported(text):
    """Full names of all modules that a file imports absolutely."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def reaches_the_core(text):
    return any(name == "sam_d2.embedded" or name.startswith("sam_d2.embedded.") for name in imported(text))


def project_files():
    for folder in SOURCES:
        for path in sorted((PROJECT / folder).rglob("*.py")):
            if EMBEDDED not in path.parents and "output" not in path.relative_to(PROJECT).parts:
                yield path


def test_counting():
    text = '"""Doc.\n\nMore.\n"""\n\nimport os  # why\n\n\ndef f(\n    a,\n):\n    """Doc."""\n    # comment\n'
    text += '    return """\n\n"""\n'
    # import, three lines of the signature, three of the returned text (its empty line is code)
    assert code_lines(text) == 7


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import sam_d2.embedded.detectron2.engine", True),
        ("from sam_d2.embedded.detectron2 import engine", True),
        ("def f():\n    from sam_d2 import embedded", True),
        ("import sam_d2\nfrom detectron2 import engine", False),
        ("from sam_d2.embedded_things import x", False),
    ],
)
def test_finding_imports(text, expected):
    assert reaches_the_core(text) is expected


def test_the_core_has_at_most_6000_lines():
    sizes = {path: code_lines(path.read_text()) for path in EMBEDDED.rglob("*.py")}
    assert sizes, f"no files under {EMBEDDED}"
    by_package = {}
    for path, size in sizes.items():
        package = path.relative_to(EMBEDDED / "detectron2").parts[0]
        by_package[package] = by_package.get(package, 0) + size
    total = sum(sizes.values())
    assert total <= LIMIT, f"the embedded core has {total} lines of code: {by_package}"


def test_nobody_imports_the_core_by_its_path():
    files = list(project_files())
    assert len(files) > 10
    guilty = [str(path.relative_to(PROJECT)) for path in files if reaches_the_core(path.read_text())]
    assert not guilty, f"import detectron2.* instead of sam_d2.embedded.*: {guilty}"


def test_the_core_does_not_import_the_plugin():
    guilty = [
        str(path.relative_to(PROJECT))
        for path in EMBEDDED.rglob("*.py")
        if any(name.split(".")[0] == "sam_d2" for name in imported(path.read_text()))
    ]
    assert not guilty, f"the core must stand alone, like Detectron2: {guilty}"
