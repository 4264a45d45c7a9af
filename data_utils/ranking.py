"""Rankings: all ids of a tokenizer by how often a corpus has them, in a file.

Columns, tab-separated, under a header: `origin_no sort_id token number frequency`. In line i, from
0, `sort_id` is the id of rank i, and token, number (times) and frequency (fraction of all tokens)
are that id's; `origin_no` is the rank of id i. Ids that a model must not lose stand first.

The file of a vocabulary that ships is `.pytorch_pretrained_bert/<type>_<model type>.txt` below the
working directory, where the seed has it; that of a vocabulary of one's own lies beside it.
"""

import os
from pathlib import Path

import numpy as np

from config.data import TokenizerArgs
from config.errors import ConfigError

FOLDER = Path(".pytorch_pretrained_bert")
HEADER = ("origin_no", "sort_id", "token", "number", "frequency")
DEFAULT_MODEL = {
    "BertWordPieceTokenizer": "bert-base-uncased",
    "GPT2BPETokenizer": "gpt2",
    "ChineseSPTokenizer": "chinese",
}
REMEDY = "write one with scripts/count_tokens.py"


def default_path(tokenizer: TokenizerArgs) -> Path:
    """Where the ranking of a tokenizer lies, if no flag says otherwise."""
    kind = tokenizer.tokenizer_type
    if tokenizer.tokenizer_path != TokenizerArgs().tokenizer_path:
        own = Path(tokenizer.tokenizer_path).expanduser()
        folder, name = (own, "vocab") if own.is_dir() else (own.parent, own.stem)
        return folder / f"{kind}_{name}.txt"
    model = tokenizer.tokenizer_model_type or DEFAULT_MODEL.get(kind, "default")
    return FOLDER / f"{kind}_{model}.txt"


def order_of(counts: np.ndarray, protected: set[int]) -> np.ndarray:
    """Ids by rank: the protected ones, then the others, each by falling count, then by id."""
    ids = np.arange(len(counts))
    others = np.array([i not in protected for i in ids])
    return np.lexsort((ids, -counts, others))


def write_ranking(path: Path, order: np.ndarray, counts: np.ndarray, tokens: list[str]) -> None:
    """Replace the file, at once. Tabs and line ends in a token's text are escaped."""
    ranks = np.argsort(order)
    total = max(1, int(counts.sum()))
    lines = ["\t".join(HEADER)]
    for i, id_ in enumerate(order.tolist()):
        token = tokens[id_].translate(_ESCAPES)
        number = int(counts[id_])
        lines.append(f"{ranks[i]}\t{id_}\t{token}\t{number}\t{number / total:.9g}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write("\n".join(lines) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


_ESCAPES = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})


def read_ranking(path: Path, num_tokens: int, flag: str) -> np.ndarray:
    """Ids by rank, int64 [num_tokens]. ConfigError naming flag, file and line.

    `num_tokens`: ids of the tokenizer; the file must rank each of them once.
    """
    where = f"{flag}={path}"
    if not path.is_file():
        raise ConfigError(f"{where}: no ranking of the vocabulary there; {REMEDY}")
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: is not UTF-8 ({error.reason}); {REMEDY}") from None
    header = lines[0].rstrip("\r").split("\t")
    missing = [name for name in HEADER[:2] if name not in header]
    if missing:
        raise ConfigError(
            f"{where}: its first line must name the columns {', '.join(HEADER)}, separated by "
            f"tabs; {' and '.join(missing)} missing"
        )
    columns = [header.index(name) for name in HEADER[:2]]
    ranks, order = (np.empty(len(lines) - 1, np.int64) for _ in columns)
    for i, line in enumerate(lines[1:]):
        words = line.split("\t")
        try:
            ranks[i], order[i] = (int(words[column]) for column in columns)
        except (IndexError, ValueError):
            raise ConfigError(f"{where}:{i + 2}: has no {' and '.join(HEADER[:2])}") from None
    if len(order) != num_tokens:
        raise ConfigError(
            f"{where}: ranks {len(order)} ids, the tokenizer has {num_tokens}; {REMEDY} for it"
        )
    if not np.array_equal(np.sort(order), np.arange(num_tokens)):
        raise ConfigError(f"{where}: sort_id must have every id from 0 to {num_tokens - 1} once")
    if not np.array_equal(ranks[order], np.arange(num_tokens)):
        raise ConfigError(f"{where}: origin_no is not the rank that sort_id gives")
    return order
