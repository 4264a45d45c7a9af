"""Word vectors between table and stack: projected from a narrow table, or mixed with neighbours.

Narrow table (ALBERT, Lan et al., 2020, arXiv 1909.11942): word vectors are c wide; one linear layer
takes them to h, another takes the last hidden states back to c, before the vocabulary product. The
second is left out where no words are predicted.

Neighbours (MobileBERT, Sun et al., 2020, arXiv 2004.02984), e_i the first w entries of word i's
vector, 0 outside the sample:

    x_i = W [next_i ; e_i ; e_(i-1)] + b,    next_i = e_(i+1) if i < sep - 1 else e_(i-2)

Not as in the paper: from the last token of the context on, the next one is still to be predicted.
The token two back stands in its place.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mpu
from model.init import InitMethod


class OwnWords(nn.Module):
    """Every position has its own word only: nothing to do."""

    def forward(self, words: Tensor, sep: Tensor | int, has_memory: bool) -> Tensor:
        """[b, s, h] -> [b, s, h], the same."""
        return words


class NeighbourWords(mpu.ColumnParallelLinear):
    """Three neighbouring words' first w entries to one vector: [b, s, at least w] -> [b, s, h]."""

    def __init__(self, word_size: int, output_size: int, init_method: InitMethod):
        super().__init__(3 * word_size, output_size, gather_output=True, init_method=init_method)
        self.word_size = word_size

    def forward(self, words: Tensor, sep: Tensor | int, has_memory: bool) -> Tensor:
        """Word vectors [b, s, at least w] and the context's length, a number or [b] -> [b, s, h].

        ValueError where the neighbours are not known: with a ready mask, which does not tell the
        context, and behind a memory, which holds no words.
        """
        if has_memory or (isinstance(sep, Tensor) and sep.dim() > 1):
            given = "a memory" if has_memory else f"a mask {list(sep.shape)}"
            raise ValueError(
                f"ib_word_emb={self.word_size}: neighbouring words are not known with {given}; "
                "give whole samples and their separators [b]"
            )
        own = words[..., : self.word_size]
        length = own.size(1)
        padded = F.pad(own, (0, 0, 2, 1))  # entry j is word j - 2
        two_back, previous, following = padded[:, :length], padded[:, 1:-2], padded[:, 3:]
        column = torch.arange(length, device=own.device)
        unknown = column >= torch.as_tensor(sep, device=own.device).reshape(-1, 1) - 1
        ahead = torch.where(unknown.unsqueeze(-1), two_back, following)
        return super().forward(torch.cat((ahead, own, previous), dim=-1))
