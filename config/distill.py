"""Distillation: the student's method, the switches of the prediction layer, the teachers."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from config.errors import ConfigError
from config.group import ArgGroup, flag
from config.model import ModelArgs


@dataclass(frozen=True, kw_only=True)
class DistillArgs(ArgGroup):
    """What every method shares: soft and hard labels, temperature, masks."""

    title = "distillation"
    student_model: str | None = flag(None, "method; without it a model is trained alone")
    compat: str = flag("", "reproduce the seed: glmkd, or a list as D2,D3 or glmkd,-D1")
    distill_ft_soft: bool = flag(False, "soft labels while fine-tuning")
    distill_ft_hard: bool = flag(False, "hard labels while fine-tuning")
    distill_pt_soft: bool = flag(False, "soft labels while pretraining")
    distill_pt_hard: bool = flag(False, "hard labels while pretraining")
    distill_soft_rate: float = flag(1.0, "weight of the soft loss")
    distill_hard_rate: float = flag(1.0, "weight of the hard loss")
    distill_temperature: float = flag(1.0, "T: logits are divided by it")
    distill_wo_loss_mask: bool = flag(False, "soft loss on all tokens, not on targets only")
    distill_only_mask_pad: bool = flag(False, "soft loss on all tokens but padding")
    distill_ft_soft_kl: bool = flag(False, "fine-tuning: KL instead of cross entropy")
    distill_ft_soft_mse: bool = flag(False, "fine-tuning: squared error of the logits")
    distill_pt_soft_ce: bool = flag(False, "pretraining: cross entropy instead of KL")
    distill_pt_soft_mse: bool = flag(False, "pretraining: squared error of the logits")
    distill_logits_parallel: bool = flag(False, "add a loss on the vocabulary logits")
    distill_logit_mask_pad: bool = flag(False, "for it: leave padding out")
    distill_logit_mse: bool = flag(False, "for it: squared error")
    distill_logit_mask_map: bool = flag(
        False, "losses on the vocabulary logits: only ids that the student keeps"
    )
    forward_repeat_num: int = flag(0, "further passes over each micro-batch; their losses add up")
    ignore_first_backward_gard: bool = flag(False, "with it: the first pass's loss is left out")
    distill_random_data: str = flag(
        "", "random tokens in place of the data, or beside it", choices=("", "dual", "replace")
    )
    distill_random_data_n: str = flag("0", "for it: passes with random tokens, as 0,1")
    distill_random_data_method: str = flag(
        "shuffle", "for it: the batch's tokens shuffled, or drawn", choices=("shuffle", "sample")
    )
    distil_analysis_inter: bool = flag(False, "log how alike all layers of both models are")
    distil_analysis_frcn: str = flag("0", "for it: passes that are analysed, as 0,1")
    student_truncate_tn: int | None = flag(
        None, "start from the first layers and entries of this teacher's weights (0-based)"
    )
    student_init_layers: str | None = flag(
        None, "teacher layers to start from: 0,2,4,... or even, first, last; default: first"
    )
    student_build_map_vocab: bool = flag(
        False, "choose the ids that --map_vocab_size keeps, by a ranking of their frequency"
    )
    student_map_vocab_tn: int | None = flag(
        None, "for it: the teacher whose word vectors choose substitutes (0-based); default: [UNK]"
    )
    student_map_vocab_method: str = flag(
        "decoder",
        "for it: how alike word vectors are: product, cosine, distance",
        choices=("decoder", "cosine", "euclidean"),
    )
    student_map_vocab_ranking: str | None = flag(
        None, "for it: the ranking (scripts/count_tokens.py); default: that of the tokenizer's name"
    )

    def __post_init__(self) -> None:
        problems = []
        if self.forward_repeat_num < 0:
            problems.append(f"--forward_repeat_num={self.forward_repeat_num}: must not be negative")
        for name in ("distill_random_data_n", "distil_analysis_frcn"):
            if not re.fullmatch(r"\d+(,\d+)*", getattr(self, name)):
                problems.append(
                    f"--{name}={getattr(self, name)}: must be numbers of passes, as 0,1"
                )
        if problems:
            raise ConfigError(problems)

    def passes_that_never_come(self) -> Iterator[str]:
        """A line for each option of passes that this run does not have."""
        last = self.forward_repeat_num
        for name, on in (
            ("distill_random_data_n", self.distill_random_data),
            ("distil_analysis_frcn", self.distil_analysis_inter),
        ):
            if on and min(passes(getattr(self, name))) > last:
                value = getattr(self, name)
                yield (
                    f"--{name}={value}: there are passes 0 to {last} only, so it has no effect; "
                    f"add --forward_repeat_num={max(passes(value))}, or give --{name}=0"
                )

    @property
    def ignores_first_pass(self) -> bool:
        """Whether the loss of pass 0 is left out."""
        return self.ignore_first_backward_gard and self.forward_repeat_num > 0

    @property
    def random_passes(self) -> frozenset[int]:
        """Passes whose tokens are random."""
        return passes(self.distill_random_data_n)


def passes(text: str) -> frozenset[int]:
    """`"0,2"` -> {0, 2}"""
    return frozenset(int(word) for word in text.split(","))


@dataclass(frozen=True, kw_only=True)
class TeacherArgs(ArgGroup):
    """One frozen teacher: its shape, weights and precision."""

    title, prefix = "teacher", "teacher_"
    num_attention_heads: int = flag(16, "heads")
    hidden_size: int = flag(1024, "width")
    num_layers: int = flag(24, "transformer layers")
    max_position_embeddings: int = flag(512, "longest position (tokens)")
    load_pretrained: str | None = flag(None, "checkpoint")
    fp16: bool = flag(False, "half precision; GPU only")
    bf16: bool = flag(False, "bfloat16; CPU and GPU")
    random_para: bool = flag(False, "keep random weights: for tests")
    compress_word_emb: int = flag(0, "width of the word table; 0: that of the teacher")
    cross_layer_parameter_sharing: bool = flag(False, "all layers have the same weights")
    inverted_bottleneck_mode: bool = flag(False, "layers of another width inside")
    ib_hidden_size: int = flag(1024, "for it: width inside")
    ib_ffn_num: int = flag(1, "for it: MLPs in a layer")
    ib_word_emb: int = flag(0, "inputs from this many entries of three neighbouring words each")
    map_vocab_size: float = flag(
        0.0, "ids that it keeps (below 1: this fraction of the vocabulary); 0: all"
    )
    runs: bool = True  # whether its forward is computed: --mt_disable_operation

    def model_args(self, student: ModelArgs) -> ModelArgs:
        """The teacher's architecture; masks and vocabulary are the student's, logits of all ids."""
        return replace(
            student,
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
            num_attention_heads=self.num_attention_heads,
            max_position_embeddings=max(
                self.max_position_embeddings, student.max_position_embeddings
            ),
            checkpoint_activations=False,
            compress_word_emb=self.compress_word_emb,
            cross_layer_parameter_sharing=self.cross_layer_parameter_sharing,
            inverted_bottleneck_mode=self.inverted_bottleneck_mode,
            ib_hidden_size=self.ib_hidden_size,
            ib_ffn_num=self.ib_ffn_num,
            ib_word_emb=self.ib_word_emb,
            map_vocab_size=self.map_vocab_size,
            unmap_vocab_output=False,
        )
