"""Several teachers: the seed's colon lists, read once into one TeacherArgs each."""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, get_type_hints

from config.distill import TeacherArgs
from config.errors import ConfigError
from config.group import ArgGroup, flag

SHARED = "--" + TeacherArgs.prefix
LIST = "a value each teacher, as 12:24; one value: for all; default: the --teacher_ flag"


@dataclass(frozen=True, kw_only=True)
class MultiTeacherArgs(ArgGroup):
    """Lists over the teachers, and how several teachers are combined."""

    title = "several teachers"
    mt_num_attention_heads: str = flag("", f"heads: {LIST}")
    mt_hidden_size: str = flag("", "widths, likewise")
    mt_num_layers: str = flag("", "numbers of layers, likewise")
    mt_max_position_embeddings: str = flag("", "longest positions (tokens), likewise")
    mt_load_pretrained: str = flag("", "checkpoints, likewise")
    mt_ib_hidden_size: str = flag("", "widths inside, likewise")
    mt_ib_ffn_num: str = flag("", "MLPs in a layer, likewise")
    mt_ib_word_emb: str = flag("", "entries of three neighbouring words, likewise")
    mt_compress_word_emb: str = flag("", "widths of the word tables, likewise")
    mt_map_vocab_size: str = flag("", "ids that are kept, numbers or fractions, likewise")
    mt_fp16: str = flag("", "half precision, 0 or 1 each, likewise")
    mt_bf16: str = flag("", "bfloat16, 0 or 1 each, likewise")
    mt_inverted_bottleneck_mode: str = flag("", "layers of another width inside, 0 or 1, likewise")
    mt_cross_layer_parameter_sharing: str = flag("", "all layers alike, 0 or 1, likewise")
    mt_disable_operation: str = flag("0", "1: that teacher's forward is not computed")
    multi_teacher_model: str | None = flag(None, "how teachers are combined; default: averaged")
    mt_has_loss: bool = flag(False, "compute every teacher's hard loss")
    mt_has_grad: bool = flag(False, "train the teachers with the student, and save them with it")
    mt_model_load: str | None = flag(None, "checkpoint to take the combiner's parameters from")
    mt_load_from_s: str | None = flag(
        None, "checkpoint of a student that was saved with its teachers: take these"
    )
    student_use_empty_glm: bool = flag(False, "no student: train the teachers alone")
    teacher_offload: str = flag(
        "none", "cpu: keep idle teachers in host memory", choices=("none", "cpu")
    )
    teacher_zero_stage: int = flag(
        0, "3: cut teachers over the data-parallel ranks (DeepSpeed's ZeRO-3)", choices=(0, 3)
    )

    @property
    def combiner_name(self) -> str:
        """--multi_teacher_model, or the average."""
        return self.multi_teacher_model or "avg"

    @property
    def trains_teachers_alone(self) -> bool:
        """Whether the teachers learn something beside the student's losses."""
        return self.mt_has_grad and self.mt_has_loss

    def words(self, name: str) -> list[str]:
        """Entries of the list --mt_NAME; [] where it is not given."""
        text = getattr(self, "mt_" + name, "")
        return [word.strip() for word in text.split(":")] if text.strip() else []

    def flag_of(self, t_no: int, name: str) -> str:
        """The flag that says a field of teacher `t_no`: of its list (`--mt_hidden_size[1]`, from

        0), or the shared one."""
        words = self.words(name)
        if len(words) == 1 and words[0]:
            return "--mt_" + name
        if t_no < len(words) and words[t_no]:
            return f"--mt_{name}[{t_no}]"
        return SHARED + name

    def in_its_flags(self, t_no: int, text: str) -> str:
        """A message about the shared flags, in those of teacher `t_no`."""
        return re.sub(rf"{SHARED}(\w+)", lambda found: self.flag_of(t_no, found[1]), text)

    def split(self, shared: TeacherArgs) -> tuple[TeacherArgs, ...]:
        """One TeacherArgs a teacher: list entries over the shared --teacher_ values.

        ConfigError with every list of another length and every entry that does not read.
        """
        lists = {f.name: self.words(f.name) for f in self._listed()}
        lists = {name: words for name, words in lists.items() if words}
        lengths = {name: len(words) for name, words in lists.items() if len(words) > 1}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"--mt_{name} has {length}" for name, length in lengths.items())
            raise ConfigError(f"the --mt_ lists differ in length: {told}; give one value a teacher")
        number = max(lengths.values(), default=1)
        problems: list[str] = []
        hints = get_type_hints(TeacherArgs)
        teachers = []
        for t_no in range(number):
            values: dict[str, Any] = {}
            for name, words in lists.items():
                word = words[t_no if len(words) > 1 else 0]
                kind = hints[name] if isinstance(hints[name], type) else str
                values |= self._read(name, word, kind, problems)
            teachers.append(replace(shared, **values))
        teachers = self._with_forwards(teachers, problems)
        if problems:
            raise ConfigError(dict.fromkeys(problems))
        return tuple(teachers)

    def _listed(self) -> Iterator[dataclasses.Field]:
        """The fields of a teacher that have a list."""
        own = {f.name for f in dataclasses.fields(self)}
        return (f for f in dataclasses.fields(TeacherArgs) if "mt_" + f.name in own)

    def _read(self, name: str, word: str, kind: type, problems: list[str]) -> dict[str, Any]:
        """{name: value} of a list's entry; {} for an empty one, which is the shared value."""
        if not word:
            return {}
        given = f"--mt_{name}={getattr(self, 'mt_' + name)}"
        if kind is bool:
            if word not in ("0", "1"):
                problems.append(f"{given}: {word!r} must be 0 or 1")
            return {name: word == "1"}
        try:
            return {name: kind(word)}
        except ValueError:
            wanted = "a number" if kind is float else "an integer"
            problems.append(f"{given}: {word!r} must be {wanted}")
            return {}

    def _with_forwards(self, teachers: list[TeacherArgs], problems: list[str]) -> list[TeacherArgs]:
        words = self.mt_disable_operation.split(":")
        given = f"--mt_disable_operation={self.mt_disable_operation}"
        if not set(words) <= {"0", "1"}:
            problems.append(f"{given}: each entry must be 0 or 1")
        elif len(words) not in (1, len(teachers)):
            problems.append(f"{given}: has {len(words)} entries for {len(teachers)} teacher(s)")
        else:
            words = words * len(teachers) if len(words) == 1 else words
            return [replace(t, runs=word == "0") for t, word in zip(teachers, words, strict=True)]
        return teachers
