"""Groups of devices: GPUs that exist, each once; slots of the CPU."""

import pytest

from config import ConfigError
from distill.tune.devices import Group, free_port, groups_of, number_of_gpus

FOUR = {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}


def test_groups_are_divided_by_semicolons():
    groups = groups_of("0,1;2,3", 1, FOUR)
    assert [group.gpus for group in groups] == [("0", "1"), ("2", "3")]
    assert {group.processes for group in groups} == {2}


def test_without_a_choice_each_visible_gpu_is_one_or_each_slot():
    assert [g.gpus for g in groups_of(None, 1, {"CUDA_VISIBLE_DEVICES": "4,7"})] == [("4",), ("7",)]
    assert [g.gpus for g in groups_of(None, 2, {"CUDA_VISIBLE_DEVICES": ""})] == [(), ()]


def test_every_mistake_is_told_at_once():
    with pytest.raises(ConfigError) as caught:
        groups_of("0,9;0", 1, FOUR)
    assert [line.split(": ")[1].split(";")[0] for line in caught.value.problems] == [
        "there is no GPU 9",
        "a GPU is named twice",
        "groups must have the same number of GPUs",
    ]


def test_programs_see_their_group_only(monkeypatch):
    monkeypatch.setattr("distill.tune.devices.num_cores", lambda: 16)
    seen = Group("x", ("2", "3")).environment(2)
    assert (seen["CUDA_VISIBLE_DEVICES"], seen["OMP_NUM_THREADS"]) == ("2,3", "4")
    assert Group("cpu").environment(2)["CUDA_VISIBLE_DEVICES"] == ""


def test_gpus_of_all_hosts_count():
    assert [number_of_gpus(text) for text in ("3", "0,1", "a:0,1@b:2")] == [1, 2, 3]


def test_ports_are_of_the_range():
    assert 10000 <= free_port() <= 60000
