"""What the tests of the house share: the project's source files and their syntax trees."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("config", "mpu", "data_utils", "model", "tasks", "distill")


@cache
def sources(*folders: str) -> dict[Path, ast.Module]:
    """Path from the root -> syntax tree, for every Python file of the folders (default: all)."""
    found = sorted(
        path
        for folder in (folders or (*PACKAGES, "scripts", "tests", "."))
        for path in (
            (ROOT / folder).glob("*.py") if folder == "." else (ROOT / folder).rglob("*.py")
        )
    )
    return {p.relative_to(ROOT): ast.parse(p.read_text(encoding="utf-8"), str(p)) for p in found}


def imports(tree: ast.AST, path: Path) -> list[tuple[str, bool]]:
    """(dotted module, at module level) of every import below `tree`; relative ones made absolute."""
    inside = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        top = id(node) not in inside
        if isinstance(node, ast.Import):
            found += [(alias.name, top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(path.parts[: len(path.parts) - node.level]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            found += [(f"{module}.{alias.name}", top) for alias in node.names]
    return found
