"""GLM: word embeddings, transformer, vocabulary logits with the same embeddings.

Du et al., 2022, arXiv 2103.10360. The state dict has the keys, order and shapes of the official
checkpoints.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import mpu
from config.model import ModelArgs
from model.cache import KeyValueCache
from model.carried import CarriedMemory
from model.embedding import NeighbourWords, OwnWords
from model.init import gathered_linear, normal
from model.prompt import PromptSpec, PromptSpell
from model.transformer import ParallelTransformer
from model.vocab_map import VocabMap, VocabOutput
from mpu import Recorder

INIT_STD = 0.02


class VocabularyOutput(nn.Module):
    """Logits of any states with the table of the input layer, of which it is no second owner.

    A module, so that ZeRO-3 knows when the table is needed: gathered around each call. Whoever
    wants a product with the table calls this, also outside of the model's forward.
    """

    def __init__(self, words: mpu.VocabParallelEmbedding, vocab_map: VocabMap | None = None):
        """With `vocab_map` logits are over ids, else over rows of the table."""
        super().__init__()
        self._parts = (words, vocab_map)  # hidden from nn.Module: they belong to the input layer

    def forward(
        self,
        states: Tensor,
        columns: Tensor | None = None,
        use: Callable[[Tensor, Tensor], Any] | None = None,
    ) -> Any:
        """[..., h], replicated -> [..., v/p]; the gradient of states is summed over the ranks.

        `columns` int64 [k]: of these entries only, [..., k/p]. Instead of logits, what `use` makes
        of states [..., h] and the rank's weight [v/p, h], whose product they would be.
        """
        output = self.output()
        output = output if columns is None else output.of(columns)
        return output.logits(states) if use is None else output.used(states, use)

    def output(self) -> VocabOutput:
        """The product's description: this rank's rows, and which of them the logits use."""
        words, vocab_map = self._parts
        rows = None if vocab_map is None else vocab_map.origin_id_to_target_pos
        return VocabOutput(words.weight, rows)


class GLMModel(nn.Module):
    """ids -> logits, or hidden states without `output_predict`.

    Initial weights depend on `seed` alone, not on p: N(0, 0.02^2), and for the two projections that
    end on the residual stream N(0, 0.02^2 / 2L). Biases 0, LayerNorms 1 and 0.

    What lies between table and stack is chosen here: see `model.embedding`. With fewer rows in the
    table than ids, `vocab_map` says which row an id uses: see `model.vocab_map`.
    With `prompts` negative ids are continuous prompts: see `model.prompt`.
    """

    def __init__(
        self,
        args: ModelArgs,
        *,
        parallel_output: bool = True,
        output_predict: bool = True,
        prompts: PromptSpec | None = None,
        seed: int = 1234,
    ):
        super().__init__()
        self.hidden_size = args.hidden_size
        self.parallel_output = parallel_output
        self.output_predict = output_predict
        generator = torch.Generator().manual_seed(mpu.derive_seed(seed, "glm"))
        init_method = normal(INIT_STD, generator)
        output_init_method = normal(INIT_STD / math.sqrt(2 * args.num_layers), generator)
        width, narrow, mixed = args.hidden_size, args.compress_word_emb, args.ib_word_emb
        self.ib_emb_mlp = NeighbourWords(mixed, width, init_method) if mixed else OwnWords()
        self.compress_emb_mlp = (
            gathered_linear(narrow, width, init_method) if narrow else nn.Identity()
        )
        self.decompress_emb_mlp = (
            gathered_linear(width, narrow, init_method) if narrow else nn.Identity()
        )
        self.decompress_emb_mlp.requires_grad_(output_predict)  # without, in checkpoints only
        self.word_embeddings = mpu.VocabParallelEmbedding(
            args.table_rows, narrow or width, init_method=init_method
        )
        self.transformer = ParallelTransformer(args, init_method, output_init_method)
        self.carried: CarriedMemory | None = None  # of the run; instead of the caller's memory
        self.vocab_map: VocabMap | None = None
        if args.table_rows < args.vocab_size:
            self.vocab_map = VocabMap(args.vocab_size, args.table_rows)
        self.unmapped_output = args.unmap_vocab_output and self.vocab_map is not None
        over_ids = None if self.unmapped_output else self.vocab_map
        self.vocabulary = VocabularyOutput(self.word_embeddings, over_ids)
        self.prompt_spell: PromptSpell | None = None
        if prompts is not None:
            self.prompt_spell = PromptSpell(prompts, width, mpu.derive_seed(seed, "prompts"))

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | int,
        *mems: Tensor,
        return_memory: bool = False,
        detach_memory: bool = True,
        output_rows: Tensor | None = None,
        hook: dict | None = None,
        hook_op: dict | None = None,
        cache: KeyValueCache | None = None,
    ) -> tuple:
        """ids [b, s], positions [b, 2, s], sep -> (logits [b, s, v/p], *mems).

        `position_ids`: positions and block positions; [b, s] without block positions.
        `attention_mask`: the separator, a number or [b], or a mask [b or 1, 1, s, mem + s]; see
        `model.attention.glm_mask`. `mems`: see `ParallelTransformer.forward`.
        `cache`: keys and values of earlier positions, which these are appended to. Only without
        gradients.
        `output_rows` int64 [r]: the only positions, counted in the flattened [b * s], whose output
        is wanted: logits are [r, v/p]. The vocabulary product of the others is left out, unless the
        hook asks for it.
        Logits are gathered to the whole vocabulary v without `parallel_output`, and hidden states
        [b, s, h] without `output_predict`. With `unmap_vocab_output` v is the rows of the table.
        With a hook: ((logits, *mems), captured).
        """
        recorder = Recorder(hook, hook_op)
        if self.carried is not None:
            mems, attention_mask = self.carried.before(attention_mask)
        input_ids = recorder.edit("input_ids", input_ids=input_ids)
        words = self.words(input_ids)
        words = self.ib_emb_mlp(words, attention_mask, bool(mems) or bool(cache))
        recorder.add("words_embeddings", words)
        recorder.add("position_ids", position_ids)
        hidden, new_mems = self.transformer(
            words,
            position_ids,
            attention_mask,
            mems,
            return_memory=return_memory,
            detach_memory=detach_memory,
            recorder=recorder.child("transformer"),
            cache=cache,
        )
        if self.carried is not None:
            self.carried.after(new_mems, input_ids.size(1))
        if self.output_predict:
            output = self._logits(hidden, output_rows, recorder)
        else:
            output = _pick(hidden, output_rows)
        return recorder.result((output, *new_mems))

    def words(self, input_ids: Tensor) -> Tensor:
        """ids [b, s] -> word vectors [b, s, h], prompts in their places."""
        ids = input_ids if self.prompt_spell is None else input_ids.clamp(min=0)
        rows = ids if self.vocab_map is None else self.vocab_map(ids)
        words = self.compress_emb_mlp(self.word_embeddings(rows))
        return words if self.prompt_spell is None else self.prompt_spell(words, input_ids)

    @property
    def label_map(self) -> VocabMap | None:
        """The map from ids to this model's logits; None where logits are over ids."""
        return self.vocab_map if self.unmapped_output else None

    def _logits(self, hidden: Tensor, rows: Tensor | None, recorder: Recorder) -> Tensor:
        """[b, s, h] -> [b, s, v/p] or [r, v/p]; v instead of v/p when gathered."""
        if not recorder.wants_any("vocabulary_input", "logits_parallel"):
            hidden = _pick(hidden, rows)
            rows = None
        states = self.decompress_emb_mlp(hidden)
        recorder.add("vocabulary_input", states)
        if not recorder.wants("logits_parallel"):
            states, rows = _pick(states, rows), None
        logits = self.vocabulary(states)
        recorder.add("logits_parallel", logits)
        logits = _pick(logits, rows)
        return logits if self.parallel_output else mpu.gather_from_model_parallel_region(logits)


def _pick(x: Tensor, rows: Tensor | None) -> Tensor:
    """[b, s, x] -> [r, x]; unchanged without rows."""
    return x if rows is None else x.flatten(0, 1).index_select(0, rows)
