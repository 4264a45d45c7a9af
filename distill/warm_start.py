"""Start a student from a teacher's weights: --student_truncate_tn, --student_init_layers.

Each tensor of the student takes the leading entries of the teacher's tensor of the same name, in
every dimension; where it is larger its other entries stay as they are. So a narrower student keeps
the first entries of the residual stream. The fused projection is cut into queries, keys and values,
and these into heads: the first entries of the first heads, and the output projection's columns
likewise. Every layer of the student takes a layer of the teacher, by default the one of its number,
and every row of its word table that of its id.

Tensors are cut whole: shards are gathered, cut, and split again, so that the student is the same
for every model-parallel size.

Not as in the seed, which cuts the fused projection as one block: at another width queries, keys and
values then land in each other's place (--compat=D16).
"""

import logging
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import mpu
from config import ConfigError, RunArgs, TeacherArgs
from config.model import ModelArgs
from distill.engine.weights import gathered
from distill.teacher import Teacher
from model.vocab_map import PREFIX, VocabMap, vocab_map_of

log = logging.getLogger(__name__)

WORDS = "word_embeddings.weight"
LAYER = re.compile(r"(transformer\.layers\.)(\d+)(\..+)")
EVEN, FIRST, LAST = "even", "first", "last"


def teacher_number(run: RunArgs) -> int | None:
    """Which teacher the student starts from; None, also below 0 as in the seed: from none."""
    number = run.distill.student_truncate_tn
    wanted = number is not None and number >= 0 and run.distill.student_model is not None
    return number if wanted and run.checkpoint.load is None else None


def check_warm_start(run: RunArgs) -> None:
    """ConfigError for a teacher or layers that do not exist, or not one layer for each layer."""
    number = teacher_number(run)
    if number is None:
        return
    if number >= len(run.teachers):
        raise ConfigError(
            f"--student_truncate_tn={number}: there is no such teacher; they are numbered from 0 "
            f"to {len(run.teachers) - 1}"
        )
    teacher = run.teachers[number]
    source_layers(run.distill.student_init_layers, own_layers(run.model), own_layers(teacher))


def own_layers(model: ModelArgs | TeacherArgs) -> int:
    """Layers with weights of their own."""
    return 1 if model.cross_layer_parameter_sharing else model.num_layers


def source_layers(text: str | None, number: int, num_teacher: int) -> list[int]:
    """For each student layer the teacher's, from 0; fewer if nothing was asked for.

    even: i * num_teacher // number. ConfigError names the flag.
    """
    if text is None:
        return list(range(min(number, num_teacher)))
    words = {
        EVEN: [i * num_teacher // number for i in range(number)],
        FIRST: list(range(number)),
        LAST: list(range(num_teacher - number, num_teacher)),
    }
    flag = f"--student_init_layers={text}"
    if text in words:
        layers = words[text]
    elif re.fullmatch(r"\d+(,\d+)*", text):
        layers = [int(word) for word in text.split(",")]
    else:
        raise ConfigError(f"{flag}: must be layers of the teacher, as 0,2,4, or even, first, last")
    if len(layers) != number:
        raise ConfigError(
            f"{flag}: names {len(layers)} layers, the student has {number}; name one for each"
        )
    wrong = [layer for layer in layers if not 0 <= layer < num_teacher]
    if wrong:
        raise ConfigError(
            f"{flag}: the teacher has no layer {wrong[0]}; it has 0 to {num_teacher - 1}"
        )
    return layers


@torch.no_grad()
def warm_start(module: nn.Module, teachers: Sequence[Teacher], run: RunArgs) -> None:
    """Put a teacher's weights into the student with its head, if the run asks for it.

    Every model-parallel rank calls it. A teacher in half precision gives rounded weights.
    """
    number = teacher_number(run)
    if number is None:
        return
    args, by_head = run.teachers[number], "D16" not in run.compat
    given = teachers[number].module.state_dict(keep_vars=True)
    layers = source_layers(run.distill.student_init_layers, own_layers(run.model), own_layers(args))
    heads = run.model.num_attention_heads, args.num_attention_heads
    maps = vocab_map_of(module), vocab_map_of(teachers[number].module)
    for name, parameter in module.state_dict(keep_vars=True).items():
        source = _source(name, layers)
        if source not in given or name.startswith(PREFIX) or name.endswith("inv_freq"):
            continue
        with gathered(given[source]) as whole, gathered(parameter, write=True) as own:
            if name == WORDS and any(maps):
                _start_words(own, whole, maps)
            else:
                _start(name, own, whole, heads if by_head else None)
    log.info("--student_truncate_tn=%d: the student starts from its layers %s", number, layers)


def _start_words(own: Tensor, given: Tensor, maps: tuple[VocabMap | None, VocabMap | None]) -> None:
    """Every row of the student's word table takes that of its id in the teacher's."""
    student, teacher = maps
    whole = whole_tensor(given)
    ids = torch.arange(len(teacher.origin_id_to_target_pos) if teacher else len(whole))
    ids = ids.to(whole.device) if student is None else student.kept_ids.to(whole.device)
    rows = ids if teacher is None else teacher(ids)
    _write(own, cut(whole_tensor(own), whole[rows].to(own)))


def _source(name: str, layers: Sequence[int]) -> str | None:
    """The teacher's name of a student's tensor; None for a layer that starts from none."""
    found = LAYER.fullmatch(name)
    if found is None:
        return name
    before, layer, after = found.groups()
    return f"{before}{layers[int(layer)]}{after}" if int(layer) < len(layers) else None


def _start(name: str, own: Tensor, given: Tensor, heads: tuple[int, int] | None) -> None:
    """Write into this rank's shard of the student's tensor. `heads`: of student and teacher."""
    if own.shape == given.shape:
        own.copy_(given)
        return
    whole, source = whole_tensor(own), whole_tensor(given).to(own)
    shapes = whole.shape, source.shape
    if heads is not None:
        shapes = tuple(by_heads(name, s, n) for s, n in zip(shapes, heads, strict=True))
    _write(own, cut(whole.view(shapes[0]), source.view(shapes[1])).view(whole.shape))


def _write(own: Tensor, whole: Tensor) -> None:
    """Put this rank's shard of a whole tensor into the student's."""
    rank, size = mpu.get_model_parallel_rank(), mpu.get_model_parallel_world_size()
    own.copy_(mpu.split(whole, mpu.partition_of(own), rank, size))


def cut(own: Tensor, given: Tensor) -> Tensor:
    """`own` with the leading entries of `given` in it, as many as both have in each dimension."""
    assert own.dim() == given.dim(), (own.shape, given.shape)
    both = tuple(slice(min(pair)) for pair in zip(own.shape, given.shape, strict=True))
    own = own.clone()
    own[both] = given[both]
    return own


def by_heads(name: str, shape: Sequence[int], num_heads: int) -> tuple[int, ...]:
    """A whole tensor's shape with its heads apart: [3u, h] -> [3, n, d, h], [h, u] -> [h, n, d]."""
    if re.fullmatch(r".*attention\.query_key_value\.(weight|bias)", name):
        return 3, num_heads, shape[0] // (3 * num_heads), *shape[1:]
    if re.fullmatch(r".*attention\.dense\.weight", name):
        return shape[0], num_heads, shape[1] // num_heads
    if re.fullmatch(r".*attention\.relative\.(weight|bias)", name):
        return num_heads, shape[0] // num_heads, *shape[1:]
    return tuple(shape)


def whole_tensor(shard: Tensor) -> Tensor:
    """The tensor whose shard this rank has. All-gather."""
    partition, size = mpu.partition_of(shard), mpu.get_model_parallel_world_size()
    if partition is None or size == 1:
        return shard.detach()
    shards = mpu.gather_from_model_parallel_region(shard.detach().flatten())
    return mpu.merge(shards.view(size, *shard.shape).unbind(), partition)
