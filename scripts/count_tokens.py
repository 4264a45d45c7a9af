"""Count the tokens of corpora and write the ranking that --student_build_map_vocab keeps ids by.

    python scripts/count_tokens.py --train-data demo --tokenizer-path runs/vocab.txt

Ids that a model must not lose come first: the command tokens, and the words that stand for labels
in the patterns of all tasks. The others follow by their number. Corpora are those of --train-data,
and share its cache of tokens: one that was trained on is only counted.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from config.data import BlockLMArgs, TokenizerArgs
from config.errors import ConfigError
from data_utils.build_tokenizer import build_tokenizer
from data_utils.corpora import find_corpus
from data_utils.documents import Documents
from data_utils.ranking import default_path, order_of, write_ranking
from data_utils.token_cache import load_documents
from data_utils.tokenization import Tokenizer

DOCUMENTS_AT_ONCE = 4096


def count_tokens(documents: Documents, num_tokens: int) -> np.ndarray:
    """How often each id is in the documents: int64 [num_tokens]."""
    counts = np.zeros(num_tokens, np.int64)
    for first in range(0, len(documents), DOCUMENTS_AT_ONCE):
        last = min(first + DOCUMENTS_AT_ONCE, len(documents))
        some = np.concatenate([documents[i] for i in range(first, last)])
        counts += np.bincount(some, minlength=num_tokens)
    return counts


def label_words() -> Iterator[str]:
    """Every word that stands for a label in a pattern of a registered task, and in lower case."""
    import tasks  # noqa: F401 - registers them
    from tasks.registry import TASKS
    from tasks.superglue.pvp.base import PVP

    for name, kind in TASKS.items():
        if not issubclass(kind, PVP) or kind.own_answers:
            continue
        for pattern in range(kind.num_patterns):
            for word in kind(name, pattern).verbalizers():
                yield from (word, word.lower())


def protected_ids(tokenizer: Tokenizer) -> set[int]:
    """Ids of command tokens, and of label words that are one token."""
    found = {command.Id for command in tokenizer.commands.values()}
    for word in label_words():
        for text in (word, word.strip()):
            ids = tokenizer.encode(text)
            found.update(ids if len(ids) == 1 else ())
    return found


def check_output(path: Path, overwrite: bool) -> None:
    """ConfigError if a ranking cannot be written there, before the time is spent on it."""
    if path.is_dir():
        raise ConfigError(f"--output={path}: is a folder; give the name of a file")
    if path.exists() and not overwrite:
        raise ConfigError(f"--output={path}: exists; give another, or --overwrite")
    parent = next(p for p in path.absolute().parents if p.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise ConfigError(f"--output={path}: cannot be written below {parent}; give another")


def build_parser() -> argparse.ArgumentParser:
    """The program's flags; those that decide which tokens there are, as in a run."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], argument_default=argparse.SUPPRESS
    )
    parser.add_argument(
        "--train-data", nargs="+", required=True, help="names of config/corpora.json, or paths"
    )
    parser.add_argument("--data-dir", default=None, help="where named corpora lie")
    parser.add_argument("--text-key", default="text", help="text of a .jsonl or .parquet row")
    parser.add_argument("--cache-dir", default=None, help="folder of token caches")
    parser.add_argument(
        "--output", default=None, help="ranking to write; default: by the tokenizer"
    )
    parser.add_argument(
        "--overwrite", action="store_true", default=False, help="replace an existing ranking"
    )
    parser.add_argument(
        "--max-position-embeddings", type=int, default=512, help="for --sentinel-token, as in a run"
    )
    for group in (TokenizerArgs, BlockLMArgs):
        group.add_to(parser)
    return parser


def rank(args: argparse.Namespace) -> str:
    """Count and write; returns what was done, in a line."""
    settings = TokenizerArgs.take(args)
    output = default_path(settings) if args.output is None else Path(args.output).expanduser()
    check_output(output, args.overwrite)
    tokenizer = build_tokenizer(settings, BlockLMArgs.take(args), args.max_position_embeddings)
    corpora = [
        find_corpus(name, data_dir=args.data_dir, text_key=args.text_key)
        for name in args.train_data
    ]
    counts = count_tokens(load_documents(corpora, tokenizer, args.cache_dir), tokenizer.num_tokens)
    first = protected_ids(tokenizer)
    order = order_of(counts, first)
    tokens = [tokenizer.decode([i]) for i in range(len(counts))]
    write_ranking(output, order, counts, tokens)
    half = counts[order[: len(order) // 2]].sum() / counts.sum()
    return (
        f"{output}: {len(order)} ids by {counts.sum()} tokens, {len(first)} of them always first; "
        f"the first half covers {100 * half:.2f}% of the tokens"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, count, write; a user's mistake is one line on stderr and exit code 2."""
    args = build_parser().parse_args(argv)
    try:
        print(rank(args))
    except (ConfigError, ValueError, OSError) as e:
        print(e, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
