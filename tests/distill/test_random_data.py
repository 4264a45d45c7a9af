"""Random tokens in place of the data, or beside it."""

import pytest
import torch

from config import ConfigError, parse_args
from distill.context import Clock
from distill.random_data import RandomData
from distill.registry import method_args
from tests.distill.runs import SIZES, grads_of, rows_of, take, toy_run, toy_step
from tests.toy import VOCAB, toy_cloze_batch, toy_lm_batch

KD = ["--student_model=kd", "--distill_pt_soft", "--distill_temperature=2"]


def random_data(*flags: str) -> RandomData:
    return RandomData(toy_run(*KD, *flags), VOCAB)


def rest(batch) -> dict[str, torch.Tensor]:
    return {name: x for name, x in batch.tensors().items() if name != "tokens"}


def same(actual, expected) -> None:
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], x) for name, x in expected.items())


@pytest.mark.parametrize("method", ["shuffle", "sample"])
@pytest.mark.parametrize(
    "batch", [toy_lm_batch(4), toy_cloze_batch(3, choices=3)], ids=["lm", "ft"]
)
def test_replace_changes_the_tokens_alone(method, batch):
    data = random_data("--distill_random_data=replace", f"--distill_random_data_method={method}")
    changed, copies = data(batch, Clock())
    assert copies == 1
    same(rest(changed), rest(batch))
    assert changed.tokens.shape == batch.tokens.shape
    assert changed.tokens.dtype == batch.tokens.dtype
    assert (changed.tokens != batch.tokens).float().mean() > 0.5
    assert changed.tokens.min() >= 0
    assert changed.tokens.max() < VOCAB
    again, _ = data(batch, Clock())
    assert torch.equal(again.tokens, changed.tokens)


def test_shuffled_tokens_are_the_batchs():
    batch = toy_lm_batch(4)
    data = random_data("--distill_random_data=replace")
    (changed, _), (other, _) = (data(batch, Clock(iteration=i)) for i in (0, 1))
    expected = batch.tokens.flatten().sort().values
    for each in (changed, other):
        assert torch.equal(each.tokens.flatten().sort().values, expected)
    assert not torch.equal(changed.tokens, other.tokens)
    assert any(set(c.tolist()) - set(b.tolist()) for c, b in zip(changed.tokens, batch.tokens,
                                                                 strict=True))  # fmt: skip


def test_each_micro_batch_and_pass_is_shuffled_on_its_own():
    batch = toy_lm_batch(4)
    data = random_data("--distill_random_data=replace", "--distill_random_data_n=0,1")
    clocks = [Clock(), Clock(micro_step=1), Clock(repeat=1), Clock(iteration=1)]
    found = {tuple(data(batch, clock)[0].tokens.flatten().tolist()) for clock in clocks}
    assert len(found) == len(clocks)


def test_dual_adds_a_copy_with_random_tokens():
    batch = toy_lm_batch(4)
    data = random_data("--distill_random_data=dual")
    both, copies = data(batch, Clock())
    replaced, _ = random_data("--distill_random_data=replace")(batch, Clock())
    assert copies == 2
    assert torch.equal(both.tokens, torch.cat([batch.tokens, replaced.tokens]))
    same(rest(both), {name: torch.cat([x, x]) for name, x in rest(batch).items()})


def test_sampled_tokens_are_a_function_of_seed_iteration_pass_and_sample():
    flags = ["--distill_random_data=replace", "--distill_random_data_method=sample"]
    flags.append("--distill_random_data_n=0,1")
    batch = toy_lm_batch(4)
    batch.sample_ids = torch.tensor([7, 3, 7, 9])
    data = random_data(*flags)
    whole = data(batch, Clock(iteration=5))[0].tokens
    assert torch.equal(whole[0], whole[2])
    assert not torch.equal(whole[0], whole[1])
    moved = data(batch, Clock(iteration=5, micro_step=3))[0].tokens
    assert torch.equal(moved, whole)
    part = rows_of(batch, 1, 3, longer=6)
    width = min(part.tokens.size(1), whole.size(1))
    found = data(part, Clock(iteration=5))[0].tokens
    assert torch.equal(found[:, :width], whole[1:3, :width])
    others = [data(batch, Clock(iteration=6)), data(batch, Clock(iteration=5, repeat=1))]
    others.append(random_data(*flags, "--seed=99")(batch, Clock(iteration=5)))
    assert all(not torch.equal(other.tokens, whole) for other, _ in others)


def test_sampled_tokens_of_choices_do_not_depend_on_padding():
    flags = ["--distill_random_data=replace", "--distill_random_data_method=sample"]
    data, batch = random_data(*flags), toy_cloze_batch(3, choices=3)
    longer = toy_cloze_batch(3, choices=3, pad_to=batch.tokens.size(-1) + 4)
    short, long = (data(b, Clock())[0].tokens for b in (batch, longer))
    assert torch.equal(long[..., : short.size(-1)], short)
    assert len({tuple(row.tolist()) for row in short.flatten(0, 1)}) == 9


def test_sampled_ids_are_uniform():
    batch = toy_lm_batch(200)
    flags = ["--distill_random_data=replace", "--distill_random_data_method=sample"]
    counts = random_data(*flags)(batch, Clock())[0].tokens.flatten().bincount(minlength=VOCAB)
    expected = batch.tokens.numel() / VOCAB
    assert len(counts) == VOCAB
    assert float((counts - expected).abs().max()) < 6 * expected**0.5


def test_only_the_passes_asked_for():
    batch = toy_lm_batch(2)
    data = random_data("--distill_random_data=replace", "--distill_random_data_n=1,3",
                       "--forward_repeat_num=3")  # fmt: skip
    changed = [data(batch, Clock(repeat=r))[0] is not batch for r in range(4)]
    assert changed == [False, True, False, True]
    assert random_data()(batch, Clock()) == (batch, 1)


# In a step ----------------------------------------------------------------------------------------


def losses(*flags: str, batch=None):
    step = toy_step(toy_run(*KD, *flags))
    output = take(step, batch or toy_lm_batch(3))
    return output, grads_of(step.student.module)


def test_dual_is_the_mean_over_the_batch_and_its_copy():
    both, grads = losses("--distill_random_data=dual")
    alone, first = losses()
    other, second = losses("--distill_random_data=replace")
    torch.testing.assert_close(both.loss, (alone.loss + other.loss) / 2)
    for key, grad in grads.items():
        expected = (first[key] + second[key]) / 2
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-6, msg=key)


def test_passes_add_up_and_each_is_told():
    flags = ["--distill_random_data=replace", "--distill_random_data_n=1"]
    both, grads = losses(*flags, "--forward_repeat_num=1")
    alone, first = losses()
    names = ["Train/hard_loss", "pre_loss/pt_soft_t0", "teacher_loss/teacher_0_t0"]
    assert list(both.terms) == [*names, *(f"{name}_repeat1" for name in names)]
    assert float(both.terms[names[1]]) == float(alone.terms[names[1]])
    parts = [both.terms[name] for name in (names[2], f"{names[2]}_repeat1")]
    torch.testing.assert_close(both.loss.detach(), parts[0] + parts[1])
    only, second = losses(*flags, "--forward_repeat_num=1", "--ignore_first_backward_gard")
    torch.testing.assert_close(only.loss.detach(), parts[1])
    for key, grad in grads.items():
        expected = first[key] + second[key]
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-6, msg=key)


def test_without_a_second_pass_nothing_is_ignored():
    with_flag, grads = losses("--ignore_first_backward_gard")
    without, expected = losses()
    assert torch.equal(with_flag.loss, without.loss)
    assert all(torch.equal(grad, expected[key]) for key, grad in grads.items())


# Bad input ----------------------------------------------------------------------------------------

RUN = [*SIZES, *KD, "--train-data=x", "--train-iters=2", "--tokenizer-path=x"]
RUN += ["--seq-length=32", "--bert-prob=1"]
README = ["--distill_random_data=replace", "--distill_random_data_n=1", "--forward_repeat_num=0"]
README += ["--distill_random_data_method=sample"]


def parsed(*flags: str):
    return parse_args([*RUN, *flags], program="pretrain", methods=method_args())


def test_the_seeds_example_says_that_its_pass_never_comes():
    with pytest.raises(ConfigError) as caught:
        parsed(*README)
    (line,) = caught.value.problems
    assert line.startswith("--distill_random_data_n=1: there are passes 0 to 0 only")
    assert "--forward_repeat_num=1" in line
    assert "--distill_random_data_n=0" in line
    assert parsed(*README, "--forward_repeat_num=1").distill.random_passes == {1}
    assert parsed(*README, "--distill_random_data_n=0").distill.random_passes == {0}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--distill_random_data_n=x"], "--distill_random_data_n=x: must be numbers of passes"),
        (["--distill_random_data_n=0,"], "must be numbers of passes, as 0,1"),
        (["--forward_repeat_num=-1"], "--forward_repeat_num=-1: must not be negative"),
        (["--distill_random_data=all"], "--distill_random_data=all: must be one of"),
        (["--distill_random_data_method=mix"], "must be one of 'shuffle', 'sample'|must be one of"),
    ],
)
def test_wrong_values(flags, words):
    with pytest.raises(ConfigError, match=words):
        parsed(*flags)


@pytest.mark.parametrize(
    "flag",
    ["--distill_random_data_n=0", "--distill_random_data_method=sample"]
    + ["--ignore_first_backward_gard"],
)
def test_flags_without_effect_warn(caplog, flag):
    parsed(flag)
    name = flag.split("=")[0]
    assert [r.message for r in caplog.records if r.message.startswith(name + ":")]
