"""Documents of a batch in rows: each once, in few tokens, and back in their places."""

import random

import torch

from gemmule.teachers.document_rows import (
    Document,
    alone,
    documents_of,
    laid_out,
    packed,
    put_back,
)


def random_documents(seed: int) -> list[Document]:
    generator = random.Random(seed)
    documents = []
    for sequence in range(generator.randint(1, 6)):
        at = 0
        while at < 60:
            stop = min(64, at + generator.choice([1, 2, 3, 9, 20, 33, 64]))
            documents.append(Document(sequence, at, stop))
            at = stop
    return documents


def test_padding_is_no_document() -> None:
    doc_ids_BT = torch.tensor([[1, 1, 2, 3, 3], [4, 4, 0, 0, 0], [0, 0, 0, 0, 0]])
    expected = [(0, 0, 2), (0, 2, 3), (0, 3, 5), (1, 0, 2)]
    assert [tuple(document) for document in documents_of(doc_ids_BT)] == expected


def test_packed_rows_hold_each_document_once_and_little_else() -> None:
    for seed in range(50):
        documents = random_documents(seed)
        rows = packed(documents)
        assert sorted(document for row in rows for document in row) == sorted(documents)
        longest = max(document.length for document in documents)
        filled = [sum(document.length for document in row) for row in rows]
        assert max(filled) == longest
        assert sum(tokens <= longest / 2 for tokens in filled) <= 1
    assert packed([]) == []


def test_documents_alone_are_grouped_by_length() -> None:
    documents = random_documents(3)
    groups = alone(documents, 128)
    assert sorted(row[0] for rows in groups for row in rows) == sorted(documents)
    for rows in groups:
        lengths = [document.length for (document,) in rows]
        assert len(rows) == 1 or len(rows) * max(lengths) <= 128
        assert 2 * min(lengths) >= max(lengths)


def test_laid_out_and_put_back() -> None:
    tokens_BT = torch.arange(1, 11).view(2, 5)
    rows = [[Document(0, 1, 4), Document(1, 0, 1)], [Document(1, 2, 4)]]
    tokens_RM, positions_RM = laid_out(tokens_BT, rows)
    assert tokens_RM.tolist() == [[2, 3, 4, 6], [8, 9, 0, 0]]
    assert positions_RM.tolist() == [[0, 1, 2, 0], [0, 1, 2, 3]]
    x_BTD = torch.zeros(2, 5, 1, dtype=torch.long)
    put_back(tokens_RM[..., None], rows, x_BTD)
    assert x_BTD[..., 0].tolist() == [[0, 2, 3, 4, 0], [6, 0, 8, 9, 0]]
