"""--optimizer."""

from tests.config.common import PRETRAIN, pretrain, problems


def test_adafactor_is_a_choice_and_deepspeed_has_it_not(tmp_path):
    assert pretrain().optim.optimizer == "adam"
    assert pretrain("--optimizer=adafactor").optim.optimizer == "adafactor"
    file = tmp_path / "ds.json"
    file.write_text('{"train_micro_batch_size_per_gpu": 4}')
    flags = ["--optimizer=adafactor", "--deepspeed", f"--deepspeed_config={file}"]
    (problem,) = problems([*PRETRAIN, *flags])
    assert problem.startswith("--optimizer=adafactor: needs the rows and columns")


def test_moments_of_adamw_have_no_effect_on_it(caplog):
    pretrain("--optimizer=adafactor", "--adam-beta1=0.8", "--adam-eps=1e-6")
    assert [r.message for r in caplog.records] == [
        "--adam-beta1, --adam-eps: have no effect with --optimizer=adafactor"
    ]
