"""Which states of the text before a token of text sees, place by place."""

import torch

from tasks.text import own_document


def test_a_token_sees_its_own_document_up_to_itself():
    positions = torch.tensor([[4, 5, 6, 1, 2], [1, 2, 3, 4, 0], [9, 1, 1, 2, 3]])
    actual = own_document(positions, 6)
    assert actual.shape == (3, 1, 5, 11)
    for row, line in enumerate(positions.tolist()):
        for i, position in enumerate(line):
            began = i - max(position, 1) + 1  # where the document begins, before the batch if < 0
            for j in range(-6, 5):
                assert actual[row, 0, i, j + 6] == (began <= j <= i), (row, i, j)
