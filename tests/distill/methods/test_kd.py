"""KD and PD: recipes of the base class."""

import torch
import torch.nn.functional as F

from distill.methods.kd import KD
from distill.student import GLMStudent
from tests.distill.runs import take, toy_run, toy_step
from tests.toy import toy_cloze_batch


def scores(step, batch):
    models = (step.student.module, step.teachers[0].module)
    with torch.no_grad():
        return [model(*step.task.inputs(batch))[0] for model in models]


def test_kd_is_the_base_class_under_a_name():
    assert KD.__mro__[1] is GLMStudent
    assert KD.Args is GLMStudent.Args
    assert toy_step(toy_run("--student_model=kd")).method.get_student_hook() == {}


def test_kd_is_soft_and_hard_labels_at_a_temperature():
    flags = [
        "--student_model=kd",
        "--distill_ft_soft",
        "--distill_ft_hard",
        "--distill_temperature=10",
    ]
    batch = toy_cloze_batch(3)
    step = toy_step(toy_run(*flags, program="finetune"))
    s, t = scores(step, batch)
    soft = -100 * ((t / 10).softmax(-1) * (s / 10).log_softmax(-1)).sum(-1).mean()
    expected = soft + F.cross_entropy(s, batch.labels)
    torch.testing.assert_close(take(step, batch).loss.detach(), expected)


def test_pd_is_soft_labels_at_temperature_one():
    batch = toy_cloze_batch(3)
    step = toy_step(toy_run("--student_model=kd", "--distill_ft_soft", program="finetune"))
    s, t = scores(step, batch)
    expected = -(t.softmax(-1) * s.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(take(step, batch).loss.detach(), expected)
