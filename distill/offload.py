"""Modules that wait in host memory, and use the same device memory in turn: --teacher_offload=cpu.

    slot = Slot(device)                     device memory for one module at a time
    waiting = [Offloaded(module, slot) for module in modules]
    with waiting[2].fetched():              its weights are on the device
        ...

So a device holds as many bytes as the largest module has. Weights are copied part by part, in the
order in which a forward needs them, on a stream of their own; a part's forward waits for its own
copy, so that the copy goes on beside the computation, also that of what was asked for before. The
module that came last stays until another one comes. Only for weights that nobody changes.

Host memory is pinned where the device is a GPU. On a CPU copies are plain.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

ALIGNMENT = 256  # bytes; of every tensor in a buffer


class Slot:
    """Device memory for one module at a time."""

    def __init__(self, device: torch.device | str):
        self.device = torch.device(device)
        self.holder: Offloaded | None = None  # whose weights are in it
        self.busy = False
        self._buffer: Tensor | None = None
        on_gpu = self.device.type == "cuda"
        self._stream = torch.cuda.Stream(self.device) if on_gpu else None
        self._free = torch.cuda.Event() if on_gpu else None  # the last module has done its work
        self._copied: list[torch.cuda.Event] = []  # parts of the present one

    def allocate(self, size: int) -> Tensor:
        """So many bytes of the device."""
        return torch.empty(size, dtype=torch.uint8, device=self.device)

    def take(self, owner: "Offloaded") -> Tensor:
        """The bytes of a module on the device; its copies may still be under way: see `wait`."""
        assert not self.busy, "another module is on the device"
        size = len(owner.bytes)
        if self._buffer is None or len(self._buffer) < size:
            self._buffer, self.holder = None, None  # the old one goes first
            self._buffer = self.allocate(size)
            self._mark_free()
        if self.holder is not owner:
            self._copy(owner)
        self.busy, self.holder = True, owner
        return self._buffer[:size]

    def give_back(self) -> None:
        """The module has been used, as far as the host is concerned."""
        self.busy = False
        self._mark_free()

    def wait(self, part: int) -> None:
        """What the device does next needs this part."""
        if self._copied:
            torch.cuda.current_stream(self.device).wait_event(self._copied[part])

    def _mark_free(self) -> None:
        if self._free is not None:
            self._free.record(torch.cuda.current_stream(self.device))

    def _copy(self, owner: "Offloaded") -> None:
        if self._stream is None:
            self._buffer[: len(owner.bytes)].copy_(owner.bytes)
            return
        self._copied = []
        self._stream.wait_event(self._free)
        with torch.cuda.stream(self._stream):
            for start, stop in owner.parts:
                self._buffer[start:stop].copy_(owner.bytes[start:stop], non_blocking=True)
                self._copied.append(torch.cuda.Event())
                self._copied[-1].record(self._stream)


class Offloaded:
    """A module whose weights are in host memory, except while it is fetched.

    Its tensors stay the same objects: names, partitions and `state_dict` are as ever.
    """

    def __init__(self, module: nn.Module, slot: Slot):
        self.module, self.slot = module, slot
        self.bytes: Tensor  # all weights, one after the other
        self.parts: list[tuple[int, int]] = []  # first and last byte of each part, in order of use
        self._places: list[tuple[Tensor, int]] = []  # (tensor, its first byte)
        self.store()

    def store(self) -> None:
        """Bring the weights into host memory. Once."""
        assert not self.parts, "already stored"
        size, seen = 0, set()
        for part, tensors in units(self.module):
            start = size
            for tensor in tensors:
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    self._places.append((tensor, size))
                    size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
            part.register_forward_pre_hook(self._waits_for(len(self.parts)))
            self.parts.append((start, size))
        pin = self.slot.device.type == "cuda"
        self.bytes = torch.empty(size, dtype=torch.uint8, pin_memory=pin)
        for tensor, start in self._places:
            view = _view(self.bytes, tensor, start)
            view.copy_(tensor.detach())
            tensor.data = view

    def fetch(self) -> None:
        """Weights to the device, the copies under way. The slot's other module has to be back."""
        self._point_to(self.slot.take(self))

    def release(self) -> None:
        """Weights back to the host: nothing is copied, since they have not changed."""
        self._point_to(self.bytes)
        self.slot.give_back()

    @contextlib.contextmanager
    def fetched(self) -> Iterator[None]:
        """Inside, the weights are on the device."""
        self.fetch()
        try:
            yield
        finally:
            self.release()

    def _point_to(self, buffer: Tensor) -> None:
        for tensor, start in self._places:
            tensor.data = _view(buffer, tensor, start)

    def _waits_for(self, part: int) -> Callable[..., None]:
        def wait(*_: object) -> None:
            if self.slot.busy:
                self.slot.wait(part)

        return wait


def units(module: nn.Module) -> Iterator[tuple[nn.Module, list[Tensor]]]:
    """Parts that are waited for one by one, with their weights and buffers, in the order of use.

    That is the order of registration. A part is a layer of a stack, or what has no stack inside;
    of a module around a stack, what it holds itself.
    """
    if isinstance(module, nn.ModuleList):
        yield from ((layer, _tensors(layer, whole=True)) for layer in module)
        return
    around = any(isinstance(part, nn.ModuleList) for part in module.modules())
    yield module, _tensors(module, whole=not around)
    for child in module.children() if around else ():
        yield from units(child)


def _tensors(module: nn.Module, *, whole: bool) -> list[Tensor]:
    return [*module.parameters(recurse=whole), *module.buffers(recurse=whole)]


def _view(buffer: Tensor, tensor: Tensor, start: int) -> Tensor:
    """A tensor's place in a buffer of bytes."""
    return buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
