"""Budgets of the house: sizes, signatures, docstrings, and words that have no place in the code."""

import ast
import re

from tests.house import PACKAGES, ROOT, sources

FILE_LINES, METHOD_FILE_LINES, FUNCTION_LINES = 400, 150, 70
# The seed's public API and what passes a call on to a module: nothing else takes **kwargs.
MAY_TAKE_KWARGS = {
    "distill/student.py",  # GLMStudent: the seed's subclasses call and override these
    "mpu/hook.py",  # hook_model(hook, inter_vars, model, *inputs, **kwargs)
}
METHOD_FOLDERS = ("methods", "teachers")
CODE = (*PACKAGES, "scripts", ".")


def functions(tree: ast.Module) -> list[ast.FunctionDef]:
    """Every function and method of a file."""
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def parameters(node: ast.FunctionDef) -> list[ast.arg]:
    """All parameters but self and cls."""
    a = node.args
    every = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
    return [p for p in every if p.arg not in ("self", "cls")]


def public_functions(tree: ast.Module) -> list[ast.FunctionDef]:
    """Functions of a module and methods of its public classes whose names have no underscore."""
    bodies = [tree.body]
    bodies += [
        n.body for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")
    ]
    return [
        node
        for body in bodies
        for node in body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    ]


def is_trivial(node: ast.FunctionDef) -> bool:
    """A property, an override or a helper so short that its name says it all."""
    return node.end_lineno - node.lineno < 6


def test_no_file_is_too_long():
    wrong = []
    for path in sources(*CODE):
        limit = METHOD_FILE_LINES if path.parent.name in METHOD_FOLDERS else FILE_LINES
        lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
        if lines > limit:
            wrong.append(f"{path}: {lines} lines, limit {limit}")
    assert wrong == []


def test_no_function_is_too_long():
    wrong = [
        f"{path}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for path, tree in sources(*CODE).items()
        for node in functions(tree)
        if node.end_lineno - node.lineno + 1 > FUNCTION_LINES
    ]
    assert wrong == []


def test_only_the_seeds_api_takes_kwargs():
    wrong = [
        f"{path}:{node.lineno} {node.name}"
        for path, tree in sources(*CODE).items()
        for node in functions(tree)
        if node.args.kwarg is not None and path.as_posix() not in MAY_TAKE_KWARGS
    ]
    assert wrong == []


def test_parameters_are_annotated():
    every = [
        (path, node, parameter)
        for path, tree in sources(*CODE).items()
        for node in functions(tree)
        for parameter in parameters(node)
    ]
    bare = [f"{p}:{n.lineno} {n.name}({a.arg})" for p, n, a in every if a.annotation is None]
    assert len(bare) <= 0.1 * len(every), bare


def test_parameters_and_results_of_public_functions_are_annotated():
    wrong = [
        f"{path}:{node.lineno} {node.name}"
        for path, tree in sources(*PACKAGES).items()
        for node in public_functions(tree)
        if node.returns is None or any(p.annotation is None for p in parameters(node))
    ]
    assert wrong == []


def test_public_functions_have_docstrings():
    wrong = [
        f"{path}:{node.lineno} {node.name}"
        for path, tree in sources(*CODE).items()
        for node in functions(tree)
        if not (node.name.startswith("_") or is_trivial(node) or ast.get_docstring(node))
    ]
    assert wrong == []


def test_every_file_says_what_it_is():
    wrong = [
        str(path)
        for path, tree in sources(*CODE, "tests").items()
        if tree.body and path.name != "conftest.py" and ast.get_docstring(tree) is None
    ]
    assert wrong == []


def test_only_scripts_print():
    wrong = [
        f"{path}:{node.lineno}"
        for path, tree in sources(*PACKAGES).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert wrong == []


def test_nothing_is_left_to_do():
    note = re.compile(r"#.*\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError")
    wrong = [
        f"{path}:{number}"
        for path in sources(*CODE)
        for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), 1)
        if note.search(line)
    ]
    assert wrong == []


def test_no_path_of_one_machine():
    place = re.compile(r"/(work|tmp|root|home)/[a-z]")
    wrong = [
        f"{path.relative_to(ROOT)}:{number}"
        for folder in (*PACKAGES, "scripts", "docs", ".")
        for path in sorted((ROOT / folder).glob("*" if folder == "." else "**/*"))
        if path.is_file() and path.suffix in (".py", ".sh", ".md", ".json", ".toml", ".txt")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if place.search(line)
    ]
    assert wrong == []


def test_the_code_is_ascii():
    # Text of data and patterns may hold other characters, as escapes.
    wrong = [
        f"{path}:{number}"
        for path in sources(*CODE, "tests")
        for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), 1)
        if not line.isascii()
    ]
    assert wrong == []


def test_shipped_files_are_named_in_the_notice():
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    folders = ["data/demo/SST-2", "data/demo/WiC"]
    corpus = [path.relative_to(ROOT).as_posix() for path in (ROOT / "data/demo/corpus").iterdir()]
    assets = [
        p
        for p in (ROOT / "data_utils/assets").rglob("*")
        if p.suffix in (".txt", ".json", ".model")
    ]
    expected = [*folders, *corpus, *(path.relative_to(ROOT).as_posix() for path in assets)]
    assert [name for name in expected if name not in notice] == []
