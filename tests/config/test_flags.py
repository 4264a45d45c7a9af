"""Law 9: the flags are the seed's, and every declared flag is read somewhere."""

import ast
import json
from dataclasses import Field, fields
from functools import cache
from typing import get_type_hints

from config.distill import TeacherArgs
from config.group import ArgGroup, _scalar
from config.not_yet import IGNORED, NOT_YET, SEED_METHODS
from config.run import GROUPS
from distill.combiner import combiner_args
from distill.registry import METHODS, method_args
from tests.house import PACKAGES, ROOT, sources

SEED = json.loads((ROOT / "tests/golden/seed_flags.json").read_text(encoding="utf-8"))

#: Flags of ours that the seed has not.
OURS = {
    "--max-bad-steps",
    "--bf16",
    "--train-data-weights",
    "--compat",
    "--skip-bad-lines",
    "--teacher_bf16",
    "--student_init_layers",
    "--mt_fp16",
    "--mt_bf16",
    "--mt_inverted_bottleneck_mode",
    "--mt_cross_layer_parameter_sharing",
    "--teacher_offload",
    "--student_map_vocab_ranking",
    "--teacher_zero_stage",
    "--erdistill_inter",  # the seed reads these four and declares none
    "--erdistill_inter_mse",
    "--erdistill_wo_local",
    "--erdistill_wo_global",
    "--mixbaseline_weights",
    "--mixbaseline_temperatures",
}

#: (flag, what differs) -> why it is not as in the seed.
DIFFERS = {
    ("--text-key", "default"): "the seed's corpora take `text`; its flag served other readers",
    ("--distributed-backend", "default"): "gloo on CPU, NCCL on GPU without a flag",
}

#: Declared fields that nothing reads, because what they ask for is always so.
KEPT_FOR_THE_SEED = {
    "--shuffle": "samples are always drawn at random",
    "--no-lazy-loader": "token caches are always memory-mapped",
    "--resume-dataloader": "resuming is always exact",
    "--finetune": "distill/finetune.py implies it",
    "--block-lm": "a GLM is always trained by blank infilling",
}


@cache
def declared() -> dict[str, tuple[type[ArgGroup], Field]]:
    kinds = dict.fromkeys([*method_args().values(), *combiner_args().values()])
    groups = [*GROUPS.values(), TeacherArgs, *kinds]
    return {flag: (group, f) for group in groups for flag, f in group.flags().items()}


def kind_of(group: type[ArgGroup], f: Field) -> str:
    kind, many = _scalar(get_type_hints(group)[f.name])
    return "list" if many else kind.__name__


def test_each_flag_of_the_seed_has_one_place():
    places = {
        flag: [
            name
            for name, known in (
                ("declared", declared()),
                ("NOT_YET", NOT_YET),
                ("IGNORED", IGNORED),
            )
            if flag in known
        ]
        for flag in SEED
    }
    assert {flag: names for flag, names in places.items() if len(names) != 1} == {}


def test_no_other_flags():
    assert set(declared()) - set(SEED) == OURS
    assert set(NOT_YET) | set(IGNORED) <= set(SEED)


def test_declared_flags_are_as_in_the_seed():
    differing = set()
    for flag in set(SEED) & set(declared()):
        group, f = declared()[flag]
        choices = f.metadata["choices"]
        actual = {
            "type": kind_of(group, f),
            "default": f.default,
            "choices": list(choices) if choices else None,
        }
        differing |= {(flag, key) for key in actual if actual[key] != SEED[flag][key]}
    assert differing == set(DIFFERS)


def test_defaults_of_features_not_built():
    wrong = {}
    for flag, later in NOT_YET.items():
        expected, actual = SEED[flag]["default"], later.default
        if isinstance(expected, str) or expected is None or actual is None:
            same = actual == (None if expected is False else expected)
        else:
            same = float(actual) == expected
        if not same:
            wrong[flag] = (actual, expected)
    assert wrong == {}


def test_methods_of_the_seed_are_registered_or_known():
    assert set(SEED_METHODS) & set(method_args()) == set()
    assert {"kd", "logitsdistil"} <= set(METHODS)


def test_every_flag_says_what_it_does():
    assert [flag for flag, (_, f) in declared().items() if len(f.metadata["help"]) < 4] == []


def reads(tree: ast.Module) -> set[str]:
    """Names of attributes read off values: no methods that are called, nothing off modules."""
    nodes = list(ast.walk(tree))
    modules = {
        (alias.asname or alias.name).split(".")[0]
        for node in nodes
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    attributes = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute)
        and id(node) not in called
        and not (isinstance(node.value, ast.Name) and node.value.id in modules)
    }
    settings = {  # rows of config/deepspeed.py and getattr() name a field by a string
        argument.value
        for node in nodes
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Setting", "getattr")
        for argument in node.args
        if isinstance(argument, ast.Constant)
    }
    return attributes | settings


@cache
def names_read() -> frozenset[str]:
    """What the whole source reads, but for the checks of flags: a check is no use of one."""
    checks = ("config/checks.py", "config/idle.py")
    trees = [t for path, t in sources(*PACKAGES).items() if path.as_posix() not in checks]
    return frozenset(name for tree in trees for name in reads(tree))


def test_every_declared_flag_is_read():
    lists = {f"mt_{f.name}" for f in fields(TeacherArgs)}  # MultiTeacherArgs.split reads them all
    unread = {flag for flag, (_, f) in declared().items() if f.name not in names_read() | lists}
    assert unread - set(KEPT_FOR_THE_SEED) == set()


def test_what_is_kept_for_the_seed_is_declared():
    assert set(KEPT_FOR_THE_SEED) <= set(declared())


def test_an_unread_flag_would_be_found():
    code = "import torch\ntorch.load\nargs.save()\nx = args.lr\ngetattr(args, 'seed')\nSetting('a')"
    assert reads(ast.parse(code)) == {"lr", "seed", "a"}
