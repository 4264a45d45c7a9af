"""Capture and edit tensors inside a model: the seed's hooks over one `Recorder`.

A *hook* is a nested dict in the shape of the model: `{"transformer": {"layers": {3:
{"layernorm_output": None}}}, "logits_parallel": None}`. A leaf that is not a dict asks for that
tensor. A *hook_op* has the same paths with callables that replace tensors during the forward.

A hookable module's forward takes `hook=None, hook_op=None` and works with a `Recorder`:

    def forward(self, x, hook=None, hook_op=None):
        recorder = Recorder(hook, hook_op)
        x = self.norm(x)
        x = recorder.edit("layernorm_output", layernorm_output=x)
        recorder.add("layernorm_output", x)
        x = recorder.run("mlp", self.mlp, x)      # a hookable child
        return recorder.result(x)

With hook None it returns its plain outputs, otherwise `(outputs, captured)`: captures leave as
outputs, never by a side effect, so that DDP, DeepSpeed and activation checkpointing see them (a
recorder filled inside a checkpointed chunk would lose their gradient or fill twice).

`hook_model` is the door from outside, with the seed's contract: it appends the captures to a list
and writes their indices into the hook's leaves. `hook_add`, `hook_child`, `hook_return` serve
modules written for the seed.
"""

from collections.abc import Callable, Hashable, Iterator
from typing import Any

from torch import Tensor

Path = tuple[Hashable, ...]
Hook = dict[Hashable, Any]


def _step(tree: Hook | None, key: Hashable) -> Any:
    return tree.get(key) if isinstance(tree, dict) else None


class Recorder:
    """What is asked of one module: its part of the hook and hook_op, and where captures go.

    False, and free of cost, when neither is given. Children share `captured`, whose keys are paths
    from the recorder that was made first.
    """

    def __init__(self, hook: Hook | None = None, hook_op: Hook | None = None):
        self.hook, self.hook_op = hook, hook_op
        self.path: Path = ()
        self.captured: dict[Path, Tensor] = {}

    def __bool__(self) -> bool:
        return self.hook is not None or self.hook_op is not None

    def child(self, key: Hashable) -> "Recorder":
        """The recorder of a part: same `captured`, longer path."""
        if not self:
            return self
        part = Recorder(_step(self.hook, key), _step(self.hook_op, key))
        if not isinstance(part.hook, dict):
            part.hook = None
        if not isinstance(part.hook_op, dict):
            part.hook_op = None
        part.path, part.captured = (*self.path, key), self.captured
        return part

    def wants(self, name: Hashable) -> bool:
        """Whether the hook asks for this tensor."""
        return self.hook is not None and name in self.hook and not isinstance(self.hook[name], dict)

    def wants_any(self, *names: Hashable) -> bool:
        """Whether the hook asks for one of these tensors."""
        return self.hook is not None and any(self.wants(name) for name in names)

    def add(self, name: Hashable, tensor: Tensor) -> None:
        """Capture, if wanted."""
        if self.wants(name):
            self.captured[(*self.path, name)] = tensor

    def edits(self, name: Hashable) -> bool:
        """Whether the hook_op has a callable for this tensor."""
        return callable(_step(self.hook_op, name))

    def edit(self, name: Hashable, **tensors: Any) -> Any:
        """What the hook_op's callable makes of these keywords; without one, the first of them.

        So the tensor that may be replaced comes first: `edit("embeddings", hidden_states=x,
        this=self)`.
        """
        function = _step(self.hook_op, name)
        return function(**tensors) if callable(function) else next(iter(tensors.values()))

    def absorb(self, captured: dict[Path, Tensor]) -> None:
        """File what a part returned (paths relative to this recorder) with the rest."""
        for path, tensor in captured.items():
            self.captured[(*self.path, *path)] = tensor

    def run(self, key: Hashable, module: Callable[..., Any], *inputs: Any) -> Any:
        """Call a hookable part with its hook and hook_op, keep its captures, return its outputs."""
        part = self.child(key)
        outputs = module(*inputs, hook=part.hook, hook_op=part.hook_op)
        if part.hook is None:
            return outputs
        outputs, captured = outputs
        part.absorb(captured)
        return outputs

    def result(self, outputs: Any) -> Any:
        """What a hookable forward returns: `outputs`, or `(outputs, captured)` when hooked."""
        return outputs if self.hook is None else (outputs, self.captured)


def leaves(hook: Hook | None, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every leaf of a nested dict with its path, in order."""
    for key, value in (hook or {}).items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _set_leaf(hook: Hook, path: Path, value: Any) -> None:
    for key in path[:-1]:
        hook = hook[key]
    hook[path[-1]] = value


def hook_reduce(
    hook: Hook | None, inter_vars: list[Tensor], filter: Callable[[Any], Any] | None = None
) -> Hook:
    """The same tree with tensors (or `filter(tensor)`) at the leaves; None where nothing came.

    Leaves that `filter` turns into None stay in the tree as None.
    """
    tree: Hook = {}
    for key, value in (hook or {}).items():
        if isinstance(value, dict):
            tree[key] = hook_reduce(value, inter_vars, filter)
        else:
            tensor = None if value is None else inter_vars[value]
            tree[key] = filter(tensor) if filter is not None and tensor is not None else tensor
    return tree


def merge_ops(*hook_ops: Hook | None) -> Hook:
    """One hook_op that does the edits of all. Several of one tensor follow each other in order."""
    merged: Hook = {}
    for hook_op in hook_ops:
        for key, value in (hook_op or {}).items():
            known = merged.get(key)
            if isinstance(value, dict):
                merged[key] = merge_ops(known if isinstance(known, dict) else None, value)
            elif callable(value):
                merged[key] = _chain(known, value) if callable(known) else value
    return merged


def _chain(first: Callable[..., Any], second: Callable[..., Any]) -> Callable[..., Any]:
    def both(**tensors: Any) -> Any:
        edited = next(iter(tensors))  # see Recorder.edit
        return second(**(tensors | {edited: first(**tensors)}))

    return both


def _blank(hook: Hook) -> Hook:
    """A copy with every leaf None."""
    return {k: _blank(v) if isinstance(v, dict) else None for k, v in hook.items()}


def hook_model(
    hook: Hook | None,
    inter_vars: list[Tensor],
    model: Callable[..., Any],
    *inputs: Any,
    **kwargs: Any,
) -> Any:
    """Call `model(*inputs, hook=..., **kwargs)`; returns its outputs.

    Captured tensors are appended to `inter_vars` and their indices written into the leaves of
    `hook`, in place: afterwards `inter_vars[hook["transformer"]["output"]]` is the tensor. A leaf
    that was not reached is None. `hook_op=` goes with the other keywords. Without a hook this is a
    plain call.
    """
    if hook is None:
        return model(*inputs, **kwargs)
    outputs, captured = model(*inputs, hook=_blank(hook), **kwargs)
    index = {}
    for path, tensor in captured.items():
        index[path] = len(inter_vars)
        inter_vars.append(tensor)
    for path, _ in list(leaves(hook)):
        _set_leaf(hook, path, index.pop(path, None))
    assert not index, f"captured without being asked for: {sorted(map(str, index))}"
    return outputs


def hook_child(hook: Hook | None, name: Hashable) -> Any:
    """The part of a hook or hook_op below `name`, or None."""
    return _step(hook, name)


def hook_add(hook: Hook | None, inter_vars: list[Tensor], name: Hashable, tensor: Tensor) -> None:
    """Append a tensor to `inter_vars` and its index to the hook, if the hook asks for it."""
    if isinstance(hook, dict) and name in hook and not isinstance(hook[name], dict):
        hook[name] = len(inter_vars)
        inter_vars.append(tensor)


def hook_return(hook: Hook | None, inter_vars: list[Tensor], outputs: Any) -> Any:
    """What a hookable forward written for the seed returns: as `Recorder.result`."""
    if hook is None:
        return outputs
    return outputs, {path: inter_vars[i] for path, i in leaves(hook) if i is not None}
