"""Fill the masks of texts with a GLM: interactively, or for every line of a file.

python -m scripts.generate --load-pretrained=CHECKPOINT
python -m scripts.generate --load-pretrained=CHECKPOINT --input=prompts.txt --output=filled.jsonl
torchrun --nproc_per_node 2 -m scripts.generate --model-parallel-size=2 ...

The checkpoint's config.json knows architecture and tokenizer; official GLM checkpoints need the
flags of their model. Lengths and decoding: --out-seq-length --num-beams --length-penalty
--no-repeat-ngram-size --min-tgt-length, or drawn tokens with --temperature --top_k --top_p --seed.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from config import RunArgs
    from distill.engine.launch import Runtime
    from tasks.prompts import PromptFiller


def main(argv: Sequence[str] | None = None) -> None:
    """The program. A mistake of the user ends it with one message and exit code 2."""
    from distill.engine.launch import run_program

    run_program(lambda: generate(sys.argv[1:] if argv is None else argv))


def generate(argv: Sequence[str]) -> None:
    """From flags to filled texts."""
    own, run = read(argv)
    lines = read_prompts(own.input) if own.input is not None else None
    filler, run, runtime = load(run)
    if lines is None:
        talk(filler, run, runtime)
        return
    rows = fill_all(filler, lines, run)
    if not runtime.is_main:
        return
    if own.output is not None:
        from distill.engine import files

        files.write_lines(Path(own.output), rows)
    else:
        print("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))


def read(argv: Sequence[str]) -> "tuple[argparse.Namespace, RunArgs]":
    """Own options, and the run that the other flags ask for. ConfigError for what is wrong."""
    from config import ConfigError, parse_args
    from config.checks import check_values
    from config.text_checks import generation_problems
    from distill.combiner import combiner_args
    from distill.registry import method_args

    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="All flags of the model, the tokenizer and generation: distill/finetune.py --help",
    )
    parser.add_argument("--input", help="file of prompts, one a line; else they are asked for")
    parser.add_argument("--output", help=".jsonl file of the results; else they are printed")
    own, rest = parser.parse_known_args(argv)
    kinds = {"methods": method_args(rest), "combiners": combiner_args()}
    run = parse_args(rest, program="finetune", **kinds, check=False)
    problems = [*check_values(run), *generation_problems(run)]
    if own.output is not None and own.input is None:
        problems.append(f"--output={own.output}: needs --input, the file of prompts")
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    return own, run


def read_prompts(path: str) -> list[str]:
    """The lines of a file. ConfigError without any; ValueError names one that is not UTF-8."""
    from config import ConfigError
    from tasks.seq2seq.files import read_lines

    if not Path(path).is_file():
        raise ConfigError(f"--input={path}: no such file")
    lines = read_lines(Path(path))
    if not lines:
        raise ConfigError(f"--input={path}: is empty; one prompt a line is needed")
    return lines


def load(run: "RunArgs") -> "tuple[PromptFiller, RunArgs, Runtime]":
    """The model of --load-pretrained on this process's device, and its tokenizer."""
    import torch

    from data_utils import build_tokenizer
    from distill.engine.build import with_vocabulary
    from distill.engine.checkpoint import check_sources, load_weights
    from distill.engine.launch import launch
    from model.build import HeadSpec, build_model
    from tasks.prompts import PromptFiller

    runtime = launch(run)
    tokenizer = build_tokenizer(run.tokenizer, run.blocks, run.model.max_position_embeddings)
    check_sources(run, tokenizer.fingerprint)
    run = with_vocabulary(run, tokenizer)
    model = build_model(run.model, HeadSpec("lm"), seed=run.train.seed)
    load_weights(run.checkpoint.load_pretrained, model, what="--load-pretrained")
    dtype = torch.float16 if run.precision.fp16 else torch.bfloat16
    half = run.precision.fp16 or run.precision.bf16
    model = model.to(runtime.device, dtype if half else torch.float32).eval()
    filler = PromptFiller(
        model,
        tokenizer,
        longest=run.model.max_position_embeddings,
        block_position=not run.model.no_block_position,
    )
    return filler, run, runtime


def fill_all(filler: "PromptFiller", lines: Sequence[str], run: "RunArgs") -> list[dict[str, Any]]:
    """One row a line, in order: prompt, text, pieces. Replicas of the model share the lines."""
    import mpu
    from distill.engine.evaluate import gather_over_replicas

    prompts = [filler.encode(line, f"--input, line {i}") for i, line in enumerate(lines, 1)]
    size = run.evaluation.eval_batch_size or run.train.batch_size
    rank, replicas = mpu.get_data_parallel_rank(), mpu.get_data_parallel_world_size()
    found = {}
    for first in range(rank * size, len(lines), replicas * size):
        batch = range(first, min(first + size, len(lines)))
        filled = filler.fill([prompts[i] for i in batch], decoding(run, first))
        found |= dict(zip(batch, filled, strict=True))
    merged = {k: v for part in gather_over_replicas(found) for k, v in part.items()}
    return [
        {"prompt": line, "text": merged[i].text, "pieces": merged[i].pieces}
        for i, line in enumerate(lines)
    ]


def talk(filler: "PromptFiller", run: "RunArgs", runtime: "Runtime") -> None:
    """Ask for prompts until there are no more; an empty line or end of file ends it."""
    from config import ConfigError

    if runtime.world_size > run.parallel.model_parallel_size:
        raise ConfigError(
            f"--model-parallel-size={run.parallel.model_parallel_size}: {runtime.world_size} "
            "processes cannot share a conversation; start as many as the size, or give --input"
        )
    for number, prompt in enumerate(asked(runtime)):
        try:
            (filled,) = filler.fill([filler.encode(prompt)], decoding(run, number))
        except ValueError as error:
            if runtime.is_main:
                print(f"error: {error}")
            continue
        if runtime.is_main:
            print(f"{filled.text}\n", flush=True)


def asked(runtime: "Runtime") -> Iterator[str]:
    """The prompts that a user types into the first process."""
    import torch.distributed as dist

    while True:
        line = [""]
        if runtime.is_main:
            print("prompt ([MASK] for a blank, an empty line to end): ", end="", flush=True)
            line = [sys.stdin.readline().strip()]
        if runtime.world_size > 1:
            dist.broadcast_object_list(line, src=0)
        if not line[0]:
            return
        yield line[0]


def decoding(run: "RunArgs", number: int) -> Any:
    """How the blanks of prompt `number` and those in its batch are filled."""
    import mpu
    from tasks.generation import Decoding

    seed = mpu.derive_seed(run.train.seed, "generate", number)
    return Decoding.of(run.text, length_penalty=run.finetuning.length_penalty, seed=seed)


if __name__ == "__main__":
    main()
