"""Text to batches: tokenizers, corpora, block-LM samples, sampling."""

from data_utils.batch import Batch
from data_utils.build import Loaders, build_pretrain_loaders
from data_utils.build_tokenizer import build_tokenizer
from data_utils.loader import StepLoader
from data_utils.samplers import StepSampler
from data_utils.tokenization import Tokenizer

__all__ = [
    "Batch",
    "Loaders",
    "StepLoader",
    "StepSampler",
    "Tokenizer",
    "build_pretrain_loaders",
    "build_tokenizer",
]
