"""The import matrix, and imports that need no GPU and none of the optional or heavy libraries."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.house import PACKAGES, ROOT, imports, sources

MAY_IMPORT = {
    "config": set(),
    "mpu": set(),
    "data_utils": {"config"},
    "model": {"config", "mpu"},
    "tasks": {"config", "mpu", "data_utils", "model"},
    "distill": {"config", "mpu", "data_utils", "model", "tasks"},
}
# Inside distill: all that a method or a combiner of teachers may use.
METHOD_MAY_IMPORT = {
    "adapters", "agent", "capture", "combiner", "context", "contrast", "drawn_layers", "entropy",
    "interchange", "layer_maps", "losses", "mix", "needs", "registry", "relations", "sequences",
    "soft_labels", "stages", "student", "triplets",
}  # fmt: skip
HEAVY = {
    "apex", "datasets", "deepspeed", "matplotlib", "nltk", "optuna", "pandas", "pyarrow", "rouge_score",
    "sacrebleu", "scipy", "sentencepiece", "sklearn", "tensorboard", "tokenizers", "transformers",
}  # fmt: skip


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_lies_below_it(package):
    allowed = MAY_IMPORT[package] | {package}
    wrong = [
        f"{path} imports {module}"
        for path, tree in sources(package).items()
        for module, _ in imports(tree, path)
        if module.split(".")[0] in {*PACKAGES, "scripts", "tests"} - allowed
    ]
    assert wrong == []


def test_config_imports_no_torch_and_mpu_nothing_but_torch():
    known = {"config": set(), "mpu": {"torch", "mpu"}}
    wrong = [
        f"{path} imports {module}"
        for package, extra in known.items()
        for path, tree in sources(package).items()
        for module, _ in imports(tree, path)
        if module.split(".")[0] not in {*sys.stdlib_module_names, *extra, package}
        and (package, path.name, module.split(".")[0]) != ("mpu", "random.py", "deepspeed")
    ]
    assert wrong == []


def test_a_method_imports_no_other_method_and_nothing_of_the_engine():
    wrong = []
    for path, tree in sources("distill").items():
        if path.parent.name not in ("methods", "teachers") or path.name == "__init__.py":
            continue
        for module, _ in imports(tree, path):
            parts = module.split(".")
            below_distill = parts[0] == "distill" and parts[1] not in METHOD_MAY_IMPORT
            shared_base = parts[:3] == ["distill", path.parent.name, "combine"]
            if (below_distill and not shared_base) or module.startswith("torch.distributed"):
                wrong.append(f"{path} imports {module}")
    assert wrong == []


def test_heavy_libraries_are_imported_inside_the_functions_that_need_them():
    wrong = [
        f"{path} imports {module} at module level"
        for path, tree in sources(*PACKAGES, "scripts").items()
        for module, at_top in imports(tree, path)
        if at_top and module.split(".")[0] in HEAVY
    ]
    assert wrong == []


def test_no_file_edits_sys_path():
    edit = re.compile(
        r"sys\.path\s*(\.(append|insert|extend|remove)|\[.*\]\s*=|\+?=[^=])|PYTHONPATH"
    )
    wrong = [
        f"{path.relative_to(ROOT)}:{number}"
        for folder in (*PACKAGES, "scripts", "tests", ".ci")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix in ("", ".py", ".sh") and path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if edit.search(line)
    ]
    assert wrong == []


def test_nothing_inside_distill_hides_another_module():
    # `python distill/pretrain.py` puts distill/ first on the module path.
    requirements = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    others = (
        set(sys.stdlib_module_names)
        | {path.stem for path in ROOT.iterdir() if path.is_dir() or path.suffix == ".py"}
        | {
            name.replace("-", "_")
            for name in re.findall(r"^([\w-]+)==", requirements, re.MULTILINE)
        }
        | {"sklearn", "apex", "sentencepiece", "transformers"}
    )
    here = {path.stem for path in (ROOT / "distill").iterdir() if not path.name.startswith("__")}
    assert here & others == set()


IMPORT_ALL = """
    import importlib, pkgutil, sys

    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in {heavy!r}:
                raise ImportError("no " + name + " on this machine")

    sys.meta_path.insert(0, Missing())
    import config, distill.methods
    names = list({packages!r})
    for package in list(names):
        below = importlib.import_module(package).__path__
        names += [m.name for m in pkgutil.walk_packages(below, package + ".")]
    for name in names:
        importlib.import_module(name)
    import torch
    assert not torch.cuda.is_initialized()
    print(len(names))
"""


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_every_module_imports_without_the_heavy_libraries():
    done = run_python(IMPORT_ALL.format(heavy=HEAVY, packages=PACKAGES))
    assert done.returncode == 0, done.stderr
    expected = sum(1 for path in sources(*PACKAGES))
    assert int(done.stdout.split()[-1]) == expected


def test_config_loads_without_torch():
    done = run_python("import sys, config; sys.exit('torch' in sys.modules)")
    assert done.returncode == 0, done.stderr


def test_scripts_are_imported_without_running():
    names = [".".join(path.with_suffix("").parts) for path in sources("scripts")]
    done = run_python(
        f"import importlib\nfor name in {names!r}:\n    importlib.import_module(name)"
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
