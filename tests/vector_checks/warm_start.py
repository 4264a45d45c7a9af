"""Starting a student from a teacher: the whole state dict afterwards; a new vocabulary map."""

from collections.abc import Callable
from pathlib import Path

from config import parse_args
from distill.registry import method_args
from distill.teacher import Teacher
from distill.vocabulary import build_tables
from distill.warm_start import warm_start
from model.glm import GLMModel
from tests.vector_checks.common import Result, read_json, read_tensors


def check_truncated(case: Path) -> list[Result]:
    """student, teacher -> expected: every tensor exactly, cut as the seed cuts (D16)."""
    result, args = Result(case.name), read_json(case, "args.json")
    sizes = args["sizes"]
    flags = [
        *args["flags"],
        "--student_model=kd",
        "--compat=glmkd",
        f"--num-layers={sizes['sl']}",
        f"--hidden-size={sizes['sh']}",
        f"--num-attention-heads={sizes['hd']}",
        f"--teacher_num_layers={sizes['tl']}",
        f"--teacher_hidden_size={sizes['th']}",
        f"--teacher_num_attention_heads={sizes['thd']}",
        f"--max-position-embeddings={sizes['mp']}",
        f"--teacher_max_position_embeddings={sizes['mp']}",
        f"--vocab-size={args['vocab_size']}",
    ]
    run = parse_args(flags, program="pretrain", methods=method_args(), check=False)
    student, teacher = GLMModel(run.model), GLMModel(run.teachers[0].model_args(run.model))
    student.load_state_dict(read_tensors(case, "student.safetensors"))
    teacher.load_state_dict(read_tensors(case, "teacher.safetensors"))
    warm_start(student, [Teacher(teacher)], run)
    actual, expected = student.state_dict(), read_tensors(case, "expected.safetensors")
    result.exact("names", sorted(actual), sorted(expected))
    for name, tensor in expected.items():
        result.exact(name, actual.get(name), tensor)
    return [result]


def check_map(case: Path) -> list[Result]:
    """Ranking and word vectors -> the tables of a map, by every way of choosing substitutes."""
    result, args = Result(case.name), read_json(case, "args.json")
    inputs = read_tensors(case, "inputs.safetensors")
    vectors = inputs["teacher.word_embeddings.weight"]
    for name, expected in read_tensors(case, "expected.safetensors").items():
        method, table = name.split(".")
        tables = build_tables(
            inputs["sort_id"],
            vocab_size=args["vocab_size"],
            num_rows=args["map_vocab_size"],
            unk=args["unk_id"],
            vectors=None if method == "unk" else vectors,
            method=method,
        )
        result.exact(name, tables[table].long(), expected)
    return [result]


CHECKS: dict[str, Callable[[Path], list[Result]]] = {
    "truncate_init_*": check_truncated,
    "map_vocab_build*": check_map,
}
