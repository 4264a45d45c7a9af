"""The generated parts of README.md: `python -m scripts.readme_tables --write`.

A generated part stands between `<!-- NAME -->` and `<!-- end of NAME -->`. Its text comes from the
files themselves: the first line of a module's docstring, the first comment of a shell script.
tests/test_readme.py fails when README.md differs.
"""

import argparse
import ast
import inspect
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "config": "layer 0: what a run is asked to do; no torch",
    "mpu": "layer 1: tensor (model) parallelism; imports torch only",
    "data_utils": "layer 1: text to batches",
    "model": "layer 2: GLM",
    "tasks": "layer 3: fine-tuning tasks",
    "distill": "layer 4: the toolkit and its programs",
    "scripts": "started by people, `python -m scripts.NAME`; imported by tests only",
}
OTHER = {
    "config": ("config_*.json", "tasks/*.json", "corpora.json"),
    "data_utils": ("assets/*",),
}


def method_table() -> str:
    """One row for each registered method: its flag, the first line of its module, its file."""
    from distill.registry import METHODS, method_args

    method_args()  # imports the methods
    names: dict[type, list[str]] = {}
    for name, cls in METHODS.items():
        names.setdefault(cls, []).append(name)
    rows = ["| `--student_model` | also | what it matches | file |", "| --- | --- | --- | --- |"]
    for cls, (name, *aliases) in names.items():
        module = sys.modules[cls.__module__]
        about = inspect.cleandoc(module.__doc__).split("\n\n")[0].replace("\n", " ").rstrip(".")
        path = Path(module.__file__).resolve().relative_to(ROOT).as_posix()
        also = ", ".join(f"`{alias}`" for alias in aliases)
        rows.append(f"| `{name}` | {also} | {about} | [{path}]({path}) |")
    return "\n".join(rows)


def file_map() -> str:
    """Every source file of the project with the first line of what it says about itself."""
    lines = []
    for folder, about in FOLDERS.items():
        lines.append(f"{folder + '/':<24} {about}")
        for path in _files(ROOT / folder):
            name = path.relative_to(ROOT / folder).as_posix()
            lines.append(f"  {name:<22} {_about(path)}".rstrip())
        lines.append("")
    return "```text\n" + "\n".join(lines).rstrip() + "\n```"


def _files(folder: Path) -> list[Path]:
    found = [p for p in folder.rglob("*.py") if p.name != "__init__.py"] + [*folder.rglob("*.sh")]
    for pattern in OTHER.get(folder.name, ()):
        found += [p for p in folder.glob(pattern) if p.suffix in (".json", ".txt", ".model")]
    return sorted(set(found), key=lambda p: (len(p.relative_to(folder).parts), p.as_posix()))


def _about(path: Path) -> str:
    if path.suffix not in (".py", ".sh"):
        return ""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".sh":
        return next(line.lstrip("# ") for line in text.splitlines()[1:] if line.startswith("# "))
    return (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]


PARTS = {"method table": method_table, "file map": file_map}


def generated(text: str) -> str:
    """README.md's text with its generated parts made anew. ValueError for a missing mark."""
    for name, make in PARTS.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"README.md has no part between {begin} and {end}")
        body = f"{begin}\n{make()}\n{end}"
        text = pattern.sub(lambda _, body=body: body, text)
    return text


def main(argv: list[str] | None = None) -> int:
    """Print the generated parts, or put them into README.md."""
    parser = argparse.ArgumentParser(description="The generated parts of README.md.")
    parser.add_argument("--write", action="store_true", help="put them into README.md")
    options = parser.parse_args(argv)
    readme = ROOT / "README.md"
    if options.write:
        readme.write_text(generated(readme.read_text(encoding="utf-8")), encoding="utf-8")
        return 0
    for name, make in PARTS.items():
        print(f"## {name}\n\n{make()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
