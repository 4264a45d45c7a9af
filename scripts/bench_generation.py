"""Time of writing: with keys and values cached, and by whole forward passes.

python -m scripts.bench_generation --repeats 3 --out docs/benchmarks/generation.json

Random weights, one process. Both ways write the same tokens (`tests/tasks/test_generation.py`); the
runs alternate, and the ratio is taken pair by pair.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SIZES = {"num_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "vocab_size": 30592}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures, and write them where --out says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4, help="samples")
    parser.add_argument("--source", type=int, default=256, help="tokens of a context")
    parser.add_argument("--target", type=int, default=32, help="tokens that are written")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    rows = [measure(options, beams) for beams in options.beams]
    for row in rows:
        print(
            f"beams {row['beams']}: {row['cached_tokens_per_second']:.0f} tokens/s cached, "
            f"{row['whole_tokens_per_second']:.0f} by whole passes, ratio {row['ratio']:.1f}"
        )
    if options.out is not None:
        from distill.engine import files

        command = "python -m scripts.bench_generation " + " ".join(argv or sys.argv[1:])
        files.write_json(options.out, {"command": command, "sizes": SIZES, "rows": rows})
        print(json.dumps(SIZES))
    return 0


def measure(options: argparse.Namespace, beams: int) -> dict[str, Any]:
    """Tokens a second of both ways (medians), and the median of the pairs' ratios."""
    import torch

    from config.model import ModelArgs
    from model.build import HeadSpec, build_model
    from tasks.generation import Decoding, Symbols, Writer

    longest = max(options.source, options.target)
    args = ModelArgs(**SIZES, max_position_embeddings=longest)
    model = build_model(args, HeadSpec("lm"), seed=1).eval()
    tokens = torch.randint(1000, 20000, (options.batch, options.source))
    places = torch.zeros(options.batch, 2, options.source, dtype=torch.long)
    places[:, 0] = torch.arange(options.source)
    sep = torch.full((options.batch,), options.source)
    symbols = Symbols(sop=30522, eop=30523, pad=0, num_tokens=30524)
    decoding = Decoding(
        max_length=options.target, min_length=options.target, num_beams=beams
    )  # all of them are written

    def seconds(cached: bool) -> float:
        begun = time.perf_counter()
        with torch.no_grad():
            writer = Writer(model, symbols, tokens, places, sep, use_cache=cached)
            writer.write(torch.ones(options.batch, dtype=torch.long), decoding)
        return time.perf_counter() - begun

    seconds(True)  # imports
    pairs = [(seconds(True), seconds(False)) for _ in range(options.repeats)]
    number = options.batch * options.target
    fast, slow = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {
        "beams": beams,
        "batch": options.batch,
        "source": options.source,
        "target": options.target,
        "cached_tokens_per_second": number / fast,
        "whole_tokens_per_second": number / slow,
        "ratio": statistics.median(s / f for f, s in pairs),
    }


if __name__ == "__main__":
    sys.exit(main())
