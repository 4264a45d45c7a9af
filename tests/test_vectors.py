"""The recorded numbers that ship with the project: what is built must be ok, nothing may fail."""

import lzma
import tarfile
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests import check_vectors, pack_vectors
from tests.check_vectors import check_case, find_check, line, main
from tests.vector_checks.common import FAILED, NOT_IMPLEMENTED, OK, Result

# Every case of these names passes; a part of one may be of a task that is not built.
BUILT = [
    "fwd_basic",
    "fwd_attention_scale",
    "fwd_no_block_position",
    "fwd_memory",
    "fwd_map_vocab*",
    "fwd_cloze_heads",
    "fwd_albert",
    "fwd_compress_word_emb",
    "fwd_cross_layer_sharing",
    "fwd_ib_word_emb_only",
    "fwd_inverted_bottleneck*",
    "hooks_all*",
    "hooks_cloze_wrapper",
    "param_groups",
    "vocab_cross_entropy",
    "lr_schedule",
    "block_lm_data",
    "metrics",
    "albert_*",
    "mobilebert_1_pt_teacher",
    "mobilebert_3_ft",
    "plain_*",
    "kd_ft*",
    "pd_2_ft",
    "glmd_vc_*",
    "lm_plain_*",
    "lm_kd*",
    "avgmt_*",
    "tmkd_*",
    "dgkd_*",
    "mt_bert_*",
    "lm_mt_bert_ft",
    "uncertainty_*",
    "lm_uncertainty_ft",
    "rl_kd_*",
    "x_mixmt_ft",
    "x_kd_*",
    "x_logitsdistil_*",
    "mixbaseline_*",
    "ckd_*",
    "mgskd_*",
    "custom_loss",
    "geometric_losses",
    "*random_data_*",
    "tinybert_*",
    "x_tinybert_*",
    "minilm_1_pt",
    "minilmv2_1_pt",
    "x_minilmv2_small_ft",
    "distilbert_1_pt",
    "x_distilbert_fixln_pt",
    "tp2_minilm*",
    "tp2_tinybert_*",
    "tp2_plain_pt",
    "tp2_kd_*",
    "tp2_logitsdistil_*",
    "pkd_ft",
    "rail_kd_2_ft",
    "x_rail_kd_*",
    "alp_kd_ft",
    "universal_kd_1_ft",
    "x_universal_kd_*",
    "tp2_universal_kd_*",
    "lrc_bert_*",
    "sid_2_ft",
    "mobilebert_2_pt",
    "annealing_kd_*",
    "continuation_kd_*",
    "x_erdistill_*",
    "diito_1_pt",
    "x_diito_late_pt",
    "theseus_ft*",
    "truncate_init_*",
    "change_mp*",
    "map_vocab_build",
    "glmd_al_map_*",
    "x_glmd_map*",
]
PARTS = [
    "superglue_encodings/boolq",
    "superglue_encodings/cb",
    "superglue_encodings/copa",
    "superglue_encodings/rte",
    "superglue_encodings/wic",
    "superglue_encodings/wsc",
    "superglue_encodings/record",
    "superglue_encodings/record_collate",
    "superglue_encodings/multirc",
    "superglue_encodings/ax-b",
    "superglue_encodings/ax-g",
    *(
        f"superglue_encodings/other_glue_patterns/{name}"
        for name in ("agnews", "cola", "mnli", "mrpc", "qnli", "qqp", "sst2", "yahoo")
    ),
    "superglue_encodings/other_glue_patterns/yelp-full",
    "superglue_encodings/other_glue_patterns/yelp-polarity",
    "superglue_encodings/tokenizers/bert",
    "superglue_encodings/tokenizers/gpt2",
    "superglue_encodings/tokenizers/bert_--task-mask",
    "superglue_encodings/tokenizers/gpt2_--task-mask_--block-mask-prob=0.1",
    "superglue_encodings/tokenizers/bert_--sentinel-token_--max-position-embeddings=16",
    "superglue_encodings/tokenizers/gpt2_--sentinel-token_--max-position-embeddings=16",
]


@pytest.fixture(scope="module")
def results(vectors: Path) -> dict[str, list[Result]]:
    """Case -> its results, of the whole folder."""
    return {case.name: check_case(case) for case in sorted(vectors.iterdir()) if case.is_dir()}


def test_nothing_fails(results):
    failed = [line(r) for each in results.values() for r in each if r.status == FAILED]
    assert failed == []


@pytest.mark.parametrize("glob", BUILT)
def test_what_is_built_passes(glob, results):
    found = [r for name, each in results.items() if fnmatch(name, glob) for r in each]
    assert found, "no such case in the archive"
    assert [line(r) for r in found if r.status != OK] == []


@pytest.mark.parametrize("name", PARTS)
def test_parts_that_are_built_pass(name, results):
    found = [r for each in results.values() for r in each if r.name == name]
    assert [r.status for r in found] == [OK]


def test_a_case_is_never_ok_without_a_check(tmp_path):
    (tmp_path / "of_a_new_kind").mkdir()
    (result,) = check_case(tmp_path / "of_a_new_kind")
    assert result.status == NOT_IMPLEMENTED
    assert main([str(tmp_path)]) == 1


def test_a_method_that_is_not_built_is_told(vectors):
    case = vectors / "sid_2_ft"
    assert find_check(case) is not None
    (result,) = check_case(case)
    assert result.status in (OK, NOT_IMPLEMENTED)


@pytest.mark.parametrize(
    "name",
    ["lr_schedule", "metrics", "superglue_encodings", "vocab_cross_entropy", "block_lm_data"],
)
def test_further_cases_of_a_kind_have_its_check(name):
    assert find_check(Path(name)) is find_check(Path(f"{name}_2")) is not None


def test_an_exact_name_wins_over_a_glob(monkeypatch):
    exact, broad = (lambda case: []), (lambda case: [])

    class Area:
        CHECKS = {"a_*": broad, "a_b": exact, "a_b*": broad}

    monkeypatch.setattr(check_vectors, "AREAS", (Area,))
    assert find_check(Path("a_b")) is exact
    assert find_check(Path("a_c")) is broad


def test_what_a_check_raises_is_a_failure(monkeypatch):
    def broken(case: Path) -> list[Result]:
        raise KeyError("logits")

    monkeypatch.setattr(check_vectors, "find_check", lambda case: broken)
    (result,) = check_case(Path("some"))
    assert (result.status, result.message) == (FAILED, "KeyError: 'logits'")


def test_a_wrong_number_is_a_failure(vectors, tmp_path, capsys):
    import json
    import shutil

    case = shutil.copytree(vectors / "kd_ft", tmp_path / "cases" / "kd_ft")
    expected = json.loads((case / "expected.json").read_text())
    assert main([str(case.parent)]) == 0
    expected["runs"][0]["total_loss"] *= 1.001
    (case / "expected.json").write_text(json.dumps(expected))
    assert main([str(case.parent)]) == 1
    ok, failed = (text for text in capsys.readouterr().out.splitlines() if text.startswith("kd_ft"))
    assert ok.split()[:2] == ["kd_ft", "ok"]
    assert failed.split()[:2] == ["kd_ft", "FAILED"]
    assert "total_loss" in failed


def test_a_folder_without_such_cases_is_an_error(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path), "--case", "nothing*"])
    assert ended.value.code != 0
    assert "no case matches" in capsys.readouterr().err


def test_packing_is_reproducible(tmp_path):
    folder = tmp_path / "cases"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "args.json").write_text("{}")
    (folder / "a.md").write_text("x")
    archives = [tmp_path / "1.tar.xz", tmp_path / "2.tar.xz"]
    for archive in archives:
        pack_vectors.pack(folder, archive)
        (folder / "a.md").touch()
    assert archives[0].read_bytes() == archives[1].read_bytes()
    with tarfile.open(fileobj=lzma.open(archives[0])) as tar:
        assert tar.getnames() == ["vectors", "vectors/a.md", "vectors/b", "vectors/b/args.json"]
