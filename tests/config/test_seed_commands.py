"""Commands as the seed's scripts build them parse, with nothing changed but paths."""

from config import parse_args
from distill.registry import method_args

MODEL = """--block-lm --num-layers 6 --hidden-size 768 --num-attention-heads 12
    --max-position-embeddings 512 --tokenizer-type BertWordPieceTokenizer
    --tokenizer-model-type bert-base-uncased --model-parallel-size 1"""
DEEPSPEED = "--local_rank=0 --deepspeed-activation-checkpointing --deepspeed --deepspeed_config"
PRETRAIN = f"""{MODEL} --bert-prob 1.0 --experiment-name tiny6 --seq-length 512 --save out
    --train-iters 150000 --resume-dataloader --train-data bert-base --split 949,50,1
    --distributed-backend nccl --lr-decay-style cosine --lr-decay-iters 120000
    --lr-decay-ratio 0.05 --warmup .05 --log-interval 50 --eval-interval 1000 --save-interval 2000
    --checkpoint-activations --fp16 {DEEPSPEED} config/config_block_tiny6.json"""
FINETUNE = f"""--finetune --cloze-eval --experiment-name copa --task COPA --data-dir data --save out
    --seq-length 256 --checkpoint-activations --eval-batch-size 16 --save-epoch 100000
    --num-workers 1 {MODEL} --load-pretrained blank --lr-decay-style linear --warmup 0.1
    --weight-decay 1.0e-1 --lr 1e-5 --batch-size 16 --epochs 50 --pattern-id 0 --log-interval 20
    --eval-interval 1000 --fp16 --overwrite {DEEPSPEED} config_tasks/config_blocklm_tiny6.json"""
TEACHER = """--teacher_num_attention_heads=12 --teacher_hidden_size=768 --teacher_num_layers=12
    --teacher_max_position_embeddings=512 --teacher_load_pretrained=blank-base --teacher_fp16"""
GLMD = "--student_model=logitsdistil --distill_temperature=15 --logitsdistil_mask_pad"
KD = "--student_model=kd --distill_ft_soft --distill_ft_hard --distill_temperature=10"
OF_CORPORA = "--eval-interval, --num-workers"  # the seed gives them to tasks as well
GLMD_LAST = "--student_model=logitsdistil --distill_ft_soft --distill_temperature=1"


def parse(program: str, *parts: str):
    return parse_args(" ".join(parts).split(), program=program, methods=method_args())


def test_pretraining_with_glmd(caplog):
    run = parse("pretrain", PRETRAIN, TEACHER, GLMD)
    assert run.train.batch_size == 16
    assert run.optim.lr == 4e-4
    assert run.precision.fp16
    assert run.method.logitsdistil_mask_pad
    assert (run.model.num_layers, run.teachers[0].num_layers) == (6, 12)
    assert caplog.records == []


def test_fine_tuning_with_kd(caplog):
    run = parse("finetune", FINETUNE, TEACHER, KD)
    assert (run.optim.lr, run.optim.weight_decay) == (1e-5, 0.1)
    assert run.distill.distill_temperature == 10
    assert caplog.messages == [f"{OF_CORPORA}: have no effect on fine-tuning"]


def test_second_fine_tuning_with_glmd():
    run = parse("finetune", FINETUNE, TEACHER, GLMD_LAST, "--logitsdistil_wo_inter")
    assert run.method.logitsdistil_wo_inter


def test_flags_of_a_new_run_that_mean_nothing(caplog):
    parse("finetune", FINETUNE, "--no-load-optim --no-load-lr-scheduler --DDP-impl=torch")
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "--DDP-impl",
        "--no-load-optim",
        "--no-load-lr-scheduler",
        OF_CORPORA,
    ]
