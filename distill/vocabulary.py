"""Vocabulary compression in distillation: the student's map, and logits over the same ids.

A new map keeps the ids of the highest ranks (`data_utils.ranking`). A dropped id is replaced by
[UNK], or with --student_map_vocab_tn by the kept id whose word vector in that teacher is most like
its own:

    decoder    e_i . e_j
    cosine     e_i . e_j / |e_i| |e_j|
    euclidean  -|e_i - e_j|^2

Where a student's logits are over the ids that it keeps, a teacher's are taken of these ids.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import ConfigError, RunArgs
from config.vocabulary import substitutes_from
from data_utils.build_tokenizer import build_tokenizer
from data_utils.ranking import default_path, read_ranking
from data_utils.tokenization import Tokenizer
from distill.capture import Captured, Hook, logits
from distill.lazy_logits import Logits
from distill.student import GLMStudent
from distill.teacher import Teacher, TeacherOutput
from distill.warm_start import WORDS, whole_tensor
from model.vocab_map import TABLES, take_columns, vocab_map_of
from tasks.base import Task

log = logging.getLogger(__name__)

FLAG = "--student_map_vocab_ranking"
ROWS_AT_ONCE = 1024  # dropped ids that are compared with all kept ones at a time


class Columns:
    """Of which ids vocabulary logits are compared: the same in student and teacher.

    The student's, where its logits are over the ids that it keeps (--unmap_vocab_output); also with
    --distill_logit_mask_map, captured logits only. Otherwise all.
    """

    def __init__(self, method: GLMStudent, task: Task | None, mask_map: bool):
        """`task`: whether its logits are the vocabulary's; None: only captured ones matter."""
        self._method = method
        self._unmapped = method.label_map is not None
        self._masked = mask_map and method.vocab_map is not None and not self._unmapped
        self._output = self._unmapped and task is not None and task.vocab_parallel

    def _kept(self, wanted: bool) -> Tensor | None:
        return self._method.vocab_map.kept_ids if wanted else None

    def of_student(self, hook: Hook, captured: list[Tensor]) -> list[Tensor]:
        """The captures, vocabulary logits restricted."""
        return _restricted(hook, captured, self._kept(self._masked))

    def of_teacher(self, hook: Hook, output: TeacherOutput) -> TeacherOutput:
        """Captures and vocabulary logits of a teacher as the student has them."""
        kept = self._kept(self._unmapped or self._masked)
        words = output.logits
        if self._output and words is not None:
            words = _of(words, kept)
        return TeacherOutput(words, _restricted(hook, output.captured, kept))


def _restricted(hook: Hook, captured: list[Tensor], columns: Tensor | None) -> list[Tensor]:
    """The captures, with the vocabulary logits among them of these columns."""
    if columns is None or logits() not in Captured(hook, captured):
        return captured
    (name,) = logits().path
    changed = list(captured)
    changed[hook[name]] = _of(captured[hook[name]], columns)
    return changed


def _of(words: Tensor | Logits, columns: Tensor) -> Tensor | Logits:
    return words.of(columns) if isinstance(words, Logits) else take_columns(words, columns)


def load_ranking(run: RunArgs, tokenizer: Tokenizer) -> Tensor:
    """Ids by rank, int64 [num_tokens]. ConfigError names the file, the need and the remedy."""
    given = run.distill.student_map_vocab_ranking
    path = default_path(run.tokenizer) if given is None else Path(given).expanduser()
    return torch.from_numpy(read_ranking(path, tokenizer.num_tokens, FLAG))


@torch.no_grad()
def build_map(module: nn.Module, teachers: Sequence[Teacher], run: RunArgs) -> None:
    """Choose the ids that the student keeps, and substitutes of the others.

    Every model-parallel rank calls it, and has the same map.
    """
    vocab_map = vocab_map_of(module)
    if vocab_map is None:
        return  # nothing is dropped
    tokenizer = build_tokenizer(run.tokenizer, run.blocks, run.model.max_position_embeddings)
    ranked, unk = load_ranking(run, tokenizer), tokenizer.get_command("unk").Id
    number, vectors = substitutes_from(run), None
    if number is not None:
        vectors = word_vectors(teachers[number])
    elif unk not in ranked[: vocab_map.num_rows]:
        raise ConfigError(
            f"{FLAG}: ranks [UNK] behind the {vocab_map.num_rows} ids that --map_vocab_size keeps, "
            "so dropped ids have no substitute; keep more, give --student_map_vocab_tn, or rank it "
            "first, as scripts/count_tokens.py does"
        )
    tables = build_tables(
        ranked.to(vocab_map.kept_ids.device),
        vocab_size=run.model.vocab_size,
        num_rows=vocab_map.num_rows,
        unk=unk,
        vectors=vectors,
        method=run.distill.student_map_vocab_method,
    )
    vocab_map.set_tables(tables)
    log.info(
        "--student_build_map_vocab: keeps %d of %d ids; substitutes by %s",
        *(vocab_map.num_rows, run.model.vocab_size),
        "[UNK]" if number is None else f"teacher {number}, {run.distill.student_map_vocab_method}",
    )


def word_vectors(teacher: Teacher) -> Tensor:
    """A teacher's vector of every id, whole on every rank: [v, e], fp32."""
    table = whole_tensor(teacher.module.state_dict(keep_vars=True)[WORDS]).float()
    own_map = vocab_map_of(teacher.module)
    return table if own_map is None else table[own_map.origin_id_to_target_pos]


def build_tables(
    ranked: Tensor,
    *,
    vocab_size: int,
    num_rows: int,
    unk: int,
    vectors: Tensor | None,
    method: str,
) -> dict[str, Tensor]:
    """The three tables of a map (`model.vocab_map`), int64 and bool [v].

    `ranked`: ids of the tokenizer by rank; those of padding follow. `vectors` [v, e] choose the
    substitutes; without them it is `unk`, which must be among the kept.
    """
    device = ranked.device
    padding = torch.arange(len(ranked), vocab_size, device=device)
    order = torch.cat((ranked, padding))
    kept, dropped = order[:num_rows], order[num_rows:]
    if vectors is None:
        substitutes = (order == unk).nonzero().flatten().expand(len(dropped))
    else:
        vectors = vectors.to(device)
        substitutes = most_alike(vectors[dropped], vectors[kept], method)
    rows = torch.empty_like(order)
    rows[kept] = torch.arange(num_rows, device=device)
    rows[dropped] = substitutes
    mask = torch.zeros(vocab_size, dtype=torch.bool, device=device)
    mask[kept] = True
    ids = torch.cat((kept, order[substitutes]))
    return dict(zip(TABLES, (rows, mask, ids), strict=True))


def most_alike(these: Tensor, among: Tensor, method: str) -> Tensor:
    """For each of [n, e] the number of the most alike of [m, e]: [n]; the first of equal ones."""
    found = [similarity(part, among, method).argmax(1) for part in these.split(ROWS_AT_ONCE)]
    return torch.cat(found) if found else torch.empty(0, dtype=torch.long, device=these.device)


def similarity(these: Tensor, among: Tensor, method: str) -> Tensor:
    """[n, e], [m, e] -> [n, m], by the formulas of this file."""
    if method == "cosine":
        return F.normalize(these, dim=1) @ F.normalize(among, dim=1).t()
    product = these @ among.t()
    if method == "decoder":
        return product
    assert method == "euclidean", method
    return 2 * product - among.square().sum(1)  # |e_i|^2 is the same in a row
