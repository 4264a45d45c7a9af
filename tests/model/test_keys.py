"""Renamed checkpoint keys, alone and nested."""

import copy

import torch
from torch import nn

from model.keys import rename_keys


class Wrapper(nn.Module):
    """`inner` is saved bare, everything else below `extra`."""

    def __init__(self, inner, extra="extra."):
        super().__init__()
        self.before = nn.Linear(1, 1)
        self.inner = inner
        self.after = nn.Linear(1, 1)

        def to_file(name):
            return name.removeprefix("inner.") if name.startswith("inner.") else extra + name

        def to_module(name):
            return name.removeprefix(extra) if name.startswith(extra) else "inner." + name

        rename_keys(self, to_file, to_module)


def build():
    return Wrapper(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)))


KEYS = ["extra.before.weight", "extra.before.bias", "0.weight", "0.bias", "1.weight", "1.bias"]
KEYS += ["extra.after.weight", "extra.after.bias"]


def test_names_change_and_order_stays():
    assert list(build().state_dict()) == KEYS


def test_other_wrappers_need_not_know():
    assert list(nn.ModuleDict({"module": build()}).state_dict()) == [
        "module." + key for key in KEYS
    ]


def test_nested_renames_apply_from_the_inside_out():
    keys = list(Wrapper(build(), "outer.").state_dict())
    own = [
        f"outer.{name}" for name in ("before.weight", "before.bias", "after.weight", "after.bias")
    ]
    assert keys == own[:2] + KEYS + own[2:]


def test_loading_takes_the_names_back():
    for module in (build(), Wrapper(build(), "outer."), nn.ModuleList([build(), build()])):
        other = copy.deepcopy(module)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1)
        given = module.state_dict()
        names = list(given)
        other.load_state_dict(given)
        assert list(given) == names  # the caller's dict is not changed
        assert all(map(torch.equal, other.parameters(), module.parameters()))


def test_the_parameters_themselves_are_found_by_their_checkpoint_names():
    module = build()
    assert module.state_dict(keep_vars=True)["1.bias"] is module.inner[1].bias
