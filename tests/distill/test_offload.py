"""Modules that use a device in turn: how much is there at once, what a forward sees, what stays."""

import pytest
import torch
from torch import Tensor, nn

import mpu
from distill.capture import hidden, to_hook
from distill.offload import ALIGNMENT, Offloaded, Slot, units
from distill.teacher import Teacher
from tests.toy import SHAPES, toy_glm, toy_lm_batch

CPU = torch.device("cpu")
#: Four teachers, the third being the largest.
SIZES = ((2, 16), (4, 24), (6, 32), (3, 8))


class CountingSlot(Slot):
    """Counts the bytes it has asked for and not given back, and every copy."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.peak = self.copies = 0

    def allocate(self, size: int) -> Tensor:
        assert self._buffer is None, "the old buffer is still there"
        self.peak = max(self.peak, size)
        return super().allocate(size)

    def _copy(self, owner: Offloaded) -> None:
        self.copies += 1
        super()._copy(owner)


def inputs():
    batch = toy_lm_batch(2)
    return batch.tokens, batch.position_ids, batch.attention_mask


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def size_of(module: nn.Module) -> int:
    return sum(p.nbytes for p in module.parameters())


def is_in(tensor: Tensor, buffer: Tensor) -> bool:
    start = buffer.data_ptr()
    return start <= tensor.data_ptr() < start + buffer.nbytes


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 3, 1, 0), (3, 2, 3, 2, 0)])
def test_the_peak_of_four_teachers_is_that_of_the_largest(order):
    slot = CountingSlot()
    glms = [
        toy_glm(num_layers=layers, hidden_size=width, seed=k)
        for k, (layers, width) in enumerate(SIZES)
    ]
    expected = [Teacher(glm)(inputs()).logits for glm in glms]
    before = [weights(glm) for glm in glms]
    teachers = [Teacher(glm) for glm in glms]
    for teacher in teachers:
        teacher.offload(slot)
    resident = []

    def count(*_: object) -> None:
        here = sum(p.nbytes for g in glms for p in g.parameters() if is_in(p, slot._buffer))
        resident.append(here)

    for glm in glms:
        glm.transformer.layers[0].register_forward_pre_hook(count)
    for k in order:
        assert torch.equal(teachers[k](inputs()).logits, expected[k])
    assert resident == [size_of(glms[k]) for k in order]
    assert slot.peak <= 1.1 * max(size_of(glms[k]) for k in order)
    for glm, old in zip(glms, before, strict=True):
        assert all(torch.equal(value, old[name]) for name, value in glm.state_dict().items())
        assert not any(is_in(p, slot._buffer) for p in glm.parameters())


def test_a_teacher_that_comes_again_is_still_there():
    slot, teachers = CountingSlot(), [Teacher(toy_glm(seed=k)) for k in range(2)]
    for teacher in teachers:
        teacher.offload(slot)
    for k, copies in ((0, 1), (0, 1), (1, 2), (0, 3)):
        teachers[k](inputs())
        assert slot.copies == copies


def test_captures_outlive_the_weights():
    slot, hook = Slot(CPU), to_hook([hidden(1, 2)])
    first, second = (Teacher(toy_glm(seed=k)) for k in range(2))
    expected = first(inputs(), to_hook([hidden(1, 2)])).captured[0]
    first.offload(slot)
    second.offload(slot)
    output = first(inputs(), hook)
    second(inputs())
    assert torch.equal(output.captured[0], expected)


def test_two_at_once_are_refused_and_an_error_gives_the_slot_back():
    slot = Slot(CPU)
    first, second = (Offloaded(toy_glm(seed=k), slot) for k in range(2))
    with pytest.raises(AssertionError, match="another module"), first.fetched():
        second.fetch()
    with second.fetched():
        assert slot.busy
    assert not slot.busy


def test_a_larger_module_that_comes_later_finds_room():
    slot = CountingSlot()
    small = Offloaded(toy_glm(hidden_size=8), slot)
    with small.fetched():
        pass
    large = Offloaded(toy_glm(hidden_size=32), slot)
    for module in (large, small, large):
        with module.fetched():
            first = next(module.module.parameters())
            assert is_in(first, slot._buffer)
    assert slot.peak == len(large.bytes)


def test_precision_partitions_and_shared_tensors_stay():
    glm = toy_glm().to(torch.bfloat16)
    glm.again = glm.word_embeddings
    partition = mpu.partition_of(glm.word_embeddings.weight)
    old, slot = weights(glm), Slot(CPU)
    module = Offloaded(glm, slot)
    assert len(module.bytes) <= size_of(glm) + ALIGNMENT * len(list(glm.parameters()))
    for state in (module.fetched(), torch.no_grad()):
        with state:
            for name, value in glm.state_dict().items():
                assert value.dtype is torch.bfloat16
                assert torch.equal(value, old[name])
            assert glm.again.weight is glm.word_embeddings.weight
            assert mpu.partition_of(glm.word_embeddings.weight) is partition


@pytest.mark.parametrize("shape", SHAPES)
def test_parts_hold_every_weight_once_in_the_order_of_use(shape):
    glm = toy_glm(**SHAPES[shape])
    used: list[nn.Module] = []
    for unit, _ in units(glm):
        unit.register_forward_pre_hook(lambda unit, _: used.append(unit))
    module = Offloaded(glm, Slot(CPU))
    assert module.parts[0][0] == 0
    assert module.parts[-1][1] == len(module.bytes)
    assert all(a[1] == b[0] for a, b in zip(module.parts, module.parts[1:], strict=False))
    placed = {id(tensor) for tensor, _ in module._places}
    assert placed == {id(tensor) for tensor in (*glm.parameters(), *glm.buffers())}
    assert len(module._places) == len(placed)
    with module.fetched():
        glm(*inputs())
    layers = [unit for unit in used if unit in list(glm.transformer.layers)]
    assert layers == list(glm.transformer.layers) * glm.transformer.rounds


def test_every_part_waits_for_its_own_copy(monkeypatch):
    slot, waited = Slot(CPU), []
    monkeypatch.setattr(slot, "wait", waited.append)
    glm = toy_glm(num_layers=3)
    module = Offloaded(glm, slot)
    with module.fetched():
        glm(*inputs())
    holds = [part for part, (start, stop) in enumerate(module.parts) if stop > start]
    assert [part for part in waited if part in holds] == holds
    waited.clear()
    glm(*inputs())
    assert waited == [], "in host memory there is nothing to wait for"


def test_live_teachers_stay():
    with pytest.raises(AssertionError, match="stay on the device"):
        Teacher(toy_glm(), live=True).offload(Slot(CPU))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_peak_is_that_of_the_largest():
    slot = Slot("cuda")
    glms = [toy_glm(num_layers=4, hidden_size=256, seed=k) for k in range(4)]
    where = [x.cuda() for x in inputs()]
    expected = []
    for glm in glms:
        expected.append(Teacher(glm.cuda())(where).logits)
        glm.cpu()
    teachers = [Teacher(glm) for glm in glms]
    for teacher in teachers:
        teacher.offload(slot)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        for teacher, logits in zip(teachers, expected, strict=True):
            assert torch.equal(teacher(where).logits, logits)
    assert torch.cuda.memory_allocated() - before <= 1.1 * size_of(glms[0])
