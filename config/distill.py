"""Distillation: the student's method, the switches of the prediction layer, the teachers."""

from dataclasses import dataclass, replace

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

    def model_args(self, student: ModelArgs) -> ModelArgs:
        """The teacher's architecture; vocabulary and masks are the student's."""
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
        )
