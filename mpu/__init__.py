"""Tensor (model) parallelism: groups, shards and collectives. Imports torch only.

"Model parallel" means tensor parallel everywhere. One process needs no process group, and the ops
then cost nothing. On several processes torch.distributed must be initialised (gloo on CPU, NCCL on
CUDA) before `initialize_model_parallel`.

Legend of shapes, for the whole project: b batch, s sequence, h hidden, n heads, d = h/n, v
vocabulary, p model-parallel size, c choices or classes; a quotient such as h/p is a shard.

This module is what `deepspeed.initialize(mpu=...)` takes: `mpu=mpu`.
"""

from .cross_entropy import vocab_parallel_cross_entropy as vocab_parallel_cross_entropy
from .grads import clip_grads as clip_grads
from .grads import grad_norm as grad_norm
from .hook import Recorder as Recorder
from .hook import hook_add as hook_add
from .hook import hook_child as hook_child
from .hook import hook_model as hook_model
from .hook import hook_reduce as hook_reduce
from .hook import hook_return as hook_return
from .initialize import destroy_model_parallel as destroy_model_parallel
from .initialize import get_data_parallel_group as get_data_parallel_group
from .initialize import get_data_parallel_group_ranks as get_data_parallel_group_ranks
from .initialize import get_data_parallel_rank as get_data_parallel_rank
from .initialize import get_data_parallel_src_rank as get_data_parallel_src_rank
from .initialize import get_data_parallel_world_size as get_data_parallel_world_size
from .initialize import get_model_parallel_group as get_model_parallel_group
from .initialize import get_model_parallel_group_ranks as get_model_parallel_group_ranks
from .initialize import get_model_parallel_rank as get_model_parallel_rank
from .initialize import get_model_parallel_src_rank as get_model_parallel_src_rank
from .initialize import get_model_parallel_world_size as get_model_parallel_world_size
from .initialize import get_tensor_model_parallel_group as get_tensor_model_parallel_group
from .initialize import get_tensor_model_parallel_rank as get_tensor_model_parallel_rank
from .initialize import get_tensor_model_parallel_src_rank as get_tensor_model_parallel_src_rank
from .initialize import get_tensor_model_parallel_world_size as get_tensor_model_parallel_world_size
from .initialize import initialize_model_parallel as initialize_model_parallel
from .initialize import model_parallel_is_initialized as model_parallel_is_initialized
from .layers import ColumnParallelLinear as ColumnParallelLinear
from .layers import RowParallelLinear as RowParallelLinear
from .layers import VocabParallelEmbedding as VocabParallelEmbedding
from .layout import Layout as Layout
from .layout import Partition as Partition
from .layout import partition_of as partition_of
from .layout import set_partition as set_partition
from .mappings import copy_to_model_parallel_region as copy_to_model_parallel_region
from .mappings import gather_from_model_parallel_region as gather_from_model_parallel_region
from .mappings import max_across as max_across
from .mappings import mean_over_data_parallel as mean_over_data_parallel
from .mappings import reduce_from_model_parallel_region as reduce_from_model_parallel_region
from .mappings import scatter_to_model_parallel_region as scatter_to_model_parallel_region
from .mappings import sum_across_model_parallel_region as sum_across_model_parallel_region
from .mappings_dp import gather_from_data_parallel_region as gather_from_data_parallel_region
from .mappings_dp import gather_objects_from_data_parallel as gather_objects_from_data_parallel
from .random import derive_seed as derive_seed
from .random import get_rng_tracker as get_rng_tracker
from .random import seed_step as seed_step
from .recompute import Keep as Keep
from .recompute import checkpoint as checkpoint
from .reshard import merge as merge
from .reshard import pieces as pieces
from .reshard import split as split
from .softmax import entropy as entropy
from .softmax import log_softmax as log_softmax
from .softmax import logsumexp as logsumexp
from .softmax import mean_over_shards as mean_over_shards
from .softmax import sum_last as sum_last
from .softmax import take_last as take_last
from .softmax import top_k as top_k
from .softmax import top_k_threshold as top_k_threshold
from .utils import VocabUtility as VocabUtility
from .utils import divide as divide
from .utils import split_tensor_along_last_dim as split_tensor_along_last_dim
