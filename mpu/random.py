"""Random streams of dropout.

Two streams. The *default* one (torch's own generators) is equal on the ranks of a model-parallel
group, for dropout of replicated tensors (embeddings, layer outputs). The *model-parallel* one
differs from rank to rank, for dropout of sharded tensors (attention probabilities):

    with get_rng_tracker().fork():
        probs = dropout(probs)

`seed_step` sets both as a pure function of (seed, iteration, micro step, data-parallel rank,
model-parallel rank). A run that resumes at an iteration draws what it would have drawn; no RNG
state is saved.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from .initialize import get_model_parallel_rank, get_model_parallel_world_size

_MASK = (1 << 64) - 1
_DEFAULT_STREAM = 0
_MODEL_PARALLEL_STREAM = 1


def derive_seed(*words: int | str) -> int:
    """A seed in [0, 2^63) from any number of integers and names; order matters.

    Each word is absorbed by the finaliser of SplitMix64 (Steele, Lea, Flood 2014), so neighbouring
    words (iteration 7 and 8, rank 0 and 1) give unrelated seeds, in their low 32 bits too: torch's
    CPU generator uses no others. A name counts as the integers of its UTF-8 bytes. Methods use it
    for generators keyed by (seed, iteration): `torch.Generator().manual_seed(derive_seed(...))`.
    """
    state = 0
    for word in words:
        if isinstance(word, str):
            word = int.from_bytes(word.encode("utf-8") + b"\x01", "little")
        while True:  # integers beyond 64 bits give all their bits, 64 at a time
            state = _mix(state ^ (word & _MASK))
            word >>= 64
            if word in (0, -1):
                break
    return state >> 1


def _mix(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)


class RNGTracker:
    """The model-parallel stream: a state of the CPU and, once CUDA is in use, one of its generator.

    Until `seed` is called there is no such stream; then `fork` leaves the default one in use, which
    is only allowed for p = 1.
    """

    def __init__(self) -> None:
        self._states: tuple[Tensor, ...] = ()

    def seed(self, seed: int) -> None:
        """Start the stream anew."""
        self._states = (torch.Generator().manual_seed(seed).get_state(),)
        if torch.cuda.is_initialized():
            device = torch.cuda.current_device()
            self._states += (torch.Generator(f"cuda:{device}").manual_seed(seed).get_state(),)

    def reset(self) -> None:
        """Forget the stream."""
        self._states = ()

    def get_states(self) -> tuple[Tensor, ...]:
        """What `set_states` takes."""
        return self._states

    def set_states(self, states: tuple[Tensor, ...]) -> None:
        """Continue from states got earlier."""
        self._states = states

    @contextlib.contextmanager
    def fork(self) -> Iterator[None]:
        """Inside, torch draws from the model-parallel stream; the default one stands still."""
        if not self._states:
            assert get_model_parallel_world_size() == 1, "seed_step comes before the first dropout"
            yield
            return
        default = _swap(self._states)
        try:
            yield
        finally:
            self._states = _swap(default)


def _swap(new: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Put states into torch's generators (CPU, then CUDA if given); returns what was there."""
    old = (torch.get_rng_state(),)
    torch.set_rng_state(new[0])
    if len(new) > 1:
        old += (torch.cuda.get_rng_state(),)
        torch.cuda.set_rng_state(new[1])
    return old


_tracker = RNGTracker()


def get_rng_tracker() -> RNGTracker:
    """The tracker of this process."""
    return _tracker


def seed_step(seed: int, iteration: int, micro_step: int, dp_rank: int) -> None:
    """Seed both streams for one micro-batch: call it before the student's forward.

    The default stream is keyed by (seed, iteration, micro_step, dp_rank): equal on all ranks of a
    model-parallel group, different between data-parallel ranks. The model-parallel stream adds the
    model-parallel rank.
    """
    key = (seed, iteration, micro_step, dp_rank)
    default = derive_seed(*key, _DEFAULT_STREAM)
    torch.default_generator.manual_seed(default)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(default)
    _tracker.seed(derive_seed(*key, _MODEL_PARALLEL_STREAM, get_model_parallel_rank()))
