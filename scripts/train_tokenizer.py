"""Train a WordPiece vocabulary on corpora and write it as a vocab.txt.

    python scripts/train_tokenizer.py --train-data demo --vocab-size 6000 --output runs/vocab.txt

Train a model with it by `--tokenizer-path runs/vocab.txt`. The same corpora and size give the
same file, byte for byte.
"""

import argparse
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from config.errors import ConfigError
from data_utils.corpora import Corpus, clean_text, find_corpus, read_documents

COMMANDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def texts(corpora: Sequence[Corpus]) -> Iterator[str]:
    """All documents, as pretraining reads them."""
    for corpus in corpora:
        for text in read_documents(corpus):
            yield clean_text(text)


def train_vocabulary(corpora: Sequence[Corpus], size: int, alphabet: int = 1000) -> list[str]:
    """Tokens in the order of their ids: commands, characters, then what training adds.

    alphabet: at most so many of the most frequent characters. Fewer than `size` tokens come
    back if the corpora have no more words. Raises ValueError if there is no text, or if the
    characters alone need more than `size`.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    fast = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer(lowercase=True)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in texts(corpora):
        words.update(text.split())
    if not words:
        names = " ".join(corpus.name for corpus in corpora)
        raise ValueError(f"--train-data={names}: no text in it")
    count: Counter[str] = Counter()
    pieces = set()
    for word, times in words.items():
        for piece, _ in fast.pre_tokenizer.pre_tokenize_str(fast.normalizer.normalize_str(word)):
            pieces.add(piece)
            count.update(dict.fromkeys(piece, times))
    kept = set(sorted(count, key=lambda c: (-count[c], c))[:alphabet])
    heads = sorted({piece[0] for piece in pieces} & kept)
    tails = sorted({c for piece in pieces for c in piece[1:]} & kept)
    # The trainer numbers characters in the order of a hash map, which decides between pairs of
    # equal frequency. Given in advance, their order is ours.
    given = [*COMMANDS, *heads, *("##" + c for c in tails)]
    if len(given) > size:
        raise ValueError(f"--vocab-size={size}: characters and commands alone are {len(given)}")
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=given,
        limit_alphabet=len(given),
        show_progress=False,
    )
    fast.train_from_iterator(texts(corpora), trainer)
    vocabulary = fast.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def write_vocabulary(tokens: Sequence[str], path: Path) -> None:
    """One token a line, by a rename. ConfigError if it cannot be written."""
    try:
        _write("".join(f"{token}\n" for token in tokens), path)
    except OSError as e:
        raise ConfigError(f"--output={path}: cannot be written: {e.strerror}") from None


def _write(text: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_output(path: Path, overwrite: bool) -> None:
    """ConfigError if a vocabulary cannot be written there, before the time is spent on it."""
    if path.exists() and (path.is_dir() or not overwrite):
        advice = "is a folder" if path.is_dir() else "exists; give another, or --overwrite"
        raise ConfigError(f"--output={path}: {advice}")
    parent = next(p for p in path.absolute().parents if p.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise ConfigError(f"--output={path}: cannot be written below {parent}; give another")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--train-data", nargs="+", required=True, help="names of config/corpora.json, or paths"
    )
    parser.add_argument("--vocab-size", type=int, required=True, help="tokens, commands included")
    parser.add_argument("--output", required=True, help="vocab.txt to write, or its folder")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing vocabulary")
    parser.add_argument("--data-dir", help="where named corpora lie")
    parser.add_argument("--text-key", default="text", help="text of a .jsonl or .parquet row")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, train, write; a user's mistake is one line on stderr and exit code 2."""
    args = build_parser().parse_args(argv)
    output = Path(args.output)
    output = output if output.suffix == ".txt" else output / "vocab.txt"
    try:
        check_output(output, args.overwrite)
        corpora = [
            find_corpus(name, data_dir=args.data_dir, text_key=args.text_key)
            for name in args.train_data
        ]
        tokens = train_vocabulary(corpora, args.vocab_size)
        write_vocabulary(tokens, output)
    except (ConfigError, ValueError, OSError) as e:
        print(e, file=sys.stderr)
        sys.exit(2)
    if len(tokens) < args.vocab_size:
        logging.warning("the corpora give only %d of %d tokens", len(tokens), args.vocab_size)
    print(f"{output}: {len(tokens)} tokens")


if __name__ == "__main__":
    main()
