"""Turn a checkpoint of p model-parallel processes into one of N; or tell what a checkpoint holds.

python change_mp.py PATH N            writes PATH_MPN
python change_mp.py PATH N --out=FOLDER --dtype=bf16 --to=safetensors
python change_mp.py --inspect PATH
"""

import argparse
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """The program. A mistake of the user ends it with one message and exit code 2."""
    options = read(argv)  # before torch is imported
    from distill.engine.launch import run_program

    run_program(lambda: inspect(options) if options.inspect else change(options))


def read(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; `--inspect` and `PATH N` exclude each other."""
    parser = argparse.ArgumentParser(prog="change_mp.py", description=__doc__.splitlines()[0])
    parser.add_argument("path", nargs="?", metavar="PATH", help="a run's folder, or a tag's in it")
    parser.add_argument("size", nargs="?", type=int, metavar="N", help="model-parallel processes")
    parser.add_argument("--inspect", metavar="PATH", help="print what the checkpoint holds")
    parser.add_argument("--out", help="folder to write; default: PATH_MPN")
    parser.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), help="default: as it is")
    parser.add_argument("--to", choices=("torch", "safetensors"), default="torch", help="format")
    parser.add_argument(
        "--take_first",
        action="store_true",
        help="where shards differ in what should be equal, take the first one's",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output folder")
    options = parser.parse_args(argv)
    if options.inspect is None and options.size is None:
        parser.error("give PATH and N, or --inspect PATH")
    if options.inspect is not None and options.path is not None:
        parser.error("--inspect takes one PATH and nothing else")
    return options


def inspect(options: argparse.Namespace) -> None:
    """Print what the checkpoint holds."""
    from distill.engine.inspection import report

    for line in report(options.inspect):
        print(line)


def change(options: argparse.Namespace) -> None:
    """Write the new checkpoint and say where it is."""
    from distill.engine.checkpoint import tag_folder
    from distill.engine.resharding import Target, change_model_parallel
    from distill.engine.shards import Shards

    if options.out is None and options.dtype is None and options.to == "torch":
        size = Shards(tag_folder(options.path, what="PATH"), what="PATH").size  # if they are whole
        if size == options.size:
            print(f"{options.path}: has {size} shard(s) already; nothing to do")
            return
    target = Target(size=options.size, dtype=options.dtype, to=options.to)
    flags = {"take_first": options.take_first, "overwrite": options.overwrite}
    print(change_model_parallel(options.path, target, options.out, **flags))


if __name__ == "__main__":
    main(sys.argv[1:])
