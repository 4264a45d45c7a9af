"""Continuous prompts: vectors that are trained in place of words (P-tuning, arXiv 2103.10385).

Inputs have the ids -1, -2, ... where a prompt stands; -1 - k takes vector k of

    E = mlp(lstm(W))    lstm: two layers, both directions, then Linear, ReLU, Linear
    E = mlp(W)          mlp
    E = W               none

W [n, h] is trained. Keys and shapes are those of the official GLM (`prompt_spell.*`). Every
model-parallel rank has all of it and computes the same.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

PROMPT_FUNCTIONS = ("lstm", "mlp", "none")
INIT_WORDS = 5000  # prompts start as words among so many first ones of the vocabulary


@dataclass(frozen=True)
class PromptSpec:
    """How many continuous prompts, and what stands between them and the model."""

    length: int
    function: str = "lstm"


class PromptSpell(nn.Module):
    """The vectors of the prompts: () -> [n, h]."""

    def __init__(self, spec: PromptSpec, hidden_size: int, seed: int):
        super().__init__()
        assert spec.function in PROMPT_FUNCTIONS, spec.function
        assert spec.length > 0, spec
        self.spec = spec
        # Drawn from the default generator by torch's layers, so that it is as it was afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.spell_embeddings = nn.Embedding(spec.length, hidden_size)
            if spec.function == "lstm":
                self.lstm_head = nn.LSTM(
                    hidden_size, hidden_size, num_layers=2, bidirectional=True, batch_first=True
                )
            if spec.function != "none":
                width = 2 * hidden_size if spec.function == "lstm" else hidden_size
                self.mlp_head = nn.Sequential(
                    nn.Linear(width, hidden_size), nn.ReLU(), nn.Linear(hidden_size, hidden_size)
                )

    def forward(self, words: Tensor, input_ids: Tensor) -> Tensor:
        """Word vectors [b, s, h] of ids [b, s] -> the same with prompts where ids are negative."""
        vectors = self.vectors().to(words.dtype)
        found = vectors[(-1 - input_ids).clamp(min=0)]
        return torch.where((input_ids < 0).unsqueeze(-1), found, words)

    def vectors(self) -> Tensor:
        """[n, h], in the weights' own precision whatever autocast says."""
        number = torch.arange(self.spec.length, device=self.spell_embeddings.weight.device)
        with torch.autocast(number.device.type, enabled=False):
            vectors = self.spell_embeddings(number)
            if self.spec.function == "lstm":
                vectors = self.lstm_head(vectors[None])[0][0]
            return vectors if self.spec.function == "none" else self.mlp_head(vectors)

    @torch.no_grad()
    def start_from(self, rows: Tensor) -> None:
        """Begin with these vectors [n, h]."""
        self.spell_embeddings.weight.copy_(rows)


def draw_words(
    number: int, vocab_size: int, words: tuple[int, ...], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """What --prompt-init starts n prompts from: (ids [n], ids [n], weights of the first [n]).

    A random one of the first words of the vocabulary, mixed with a random verbalizer of the task
    (`words`) by a random ratio; without verbalizers that word alone.
    """
    first = torch.randint(min(INIT_WORDS, vocab_size), (number,), generator=generator)
    if not words:
        return first, first, torch.ones(number)
    second = torch.tensor(words)[torch.randint(len(words), (number,), generator=generator)]
    return first, second, torch.rand(number, generator=generator)
