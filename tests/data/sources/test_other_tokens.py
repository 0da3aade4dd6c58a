"""Rows of another tokeniser's tokens become the texts that were tokenised, whatever they were cut into."""

import json

import numpy as np
import other_tokenizers
import pytest
import tokenizers

from mmbert_jax.data.sources.faults import RecordError
from mmbert_jax.data.sources.other_tokens import load_other, texts_of_row
from mmbert_jax.errors import UserError

TEXTS = [
    " It goes on!\n\tAnd on  ",
    "東京 данные 🙂 naïve",
    "<|begin_of_text|> spelled <|eot_id|> and �",
    "�",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    other_tokenizers.llama(other_tokenizers.sentences(100)).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def llama(folder):
    return load_other(folder)


@pytest.fixture(scope="module")
def encode(folder):
    """Of `tokenizers`' own, with BOS; letters of special tokens stay letters."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return lambda text: tokenizer.encode(text).ids


def texts(row, indices, llama):
    return texts_of_row(np.array(row, np.uint32), indices, llama, "there")


def test_documents_end_where_indices_say_and_at_bos(llama, encode):
    rows = [encode(text) for text in TEXTS]
    row = [i for ids in rows for i in ids]
    assert texts(row, None, llama) == TEXTS
    ends = np.cumsum([len(ids) for ids in rows])
    indices = np.stack([ends - [len(ids) for ids in rows], ends], 1)
    assert texts(row, indices, llama) == TEXTS
    # Without BOS it is the indices alone; what they leave out is no document.
    bare = [i for i in row if i != rows[0][0]]
    ends = np.cumsum([len(ids) - 1 for ids in rows])
    indices = np.stack([ends - [len(ids) - 1 for ids in rows], ends], 1)
    assert texts(bare, indices[1:], llama) == TEXTS[1:]
    assert texts(bare, indices[:0], llama) == []
    assert texts([], None, llama) == []


def test_special_tokens_never_reach_the_text(folder, llama, encode):
    eot = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id("<|eot_id|>")
    assert texts([*encode("one"), eot, *encode(" two")[1:], eot], None, llama) == ["one two"]
    assert texts([encode("")[0], eot], None, llama) == []


def test_the_files_beside_it_name_eos(tmp_path, folder, encode):
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    named = {"eos_token": {"content": "<|end_of_text|>"}, "bos_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    other = load_other(tmp_path)
    eos = other.tokenizer.token_to_id("<|end_of_text|>")
    assert texts([*encode("a")[1:], eos, *encode("b")[1:], eos], None, other) == ["a", "b"]


def test_a_character_that_is_cut_is_left_out(llama, encode):
    """At every place: what is left is the text's bytes, which byte-level pieces spell one by one."""
    text = TEXTS[1]
    ids = encode(text)[1:]
    ends = np.cumsum([len(llama.tokenizer.id_to_token(i)) for i in ids])
    assert ends[-1] == len(text.encode())
    cut = 0
    for at, end in enumerate(ends[:-1].tolist(), 1):
        found = texts(ids, [[0, at], [at, len(ids)]], llama)
        parts = text.encode()[:end], text.encode()[end:]
        assert found == [part.decode("utf-8", "ignore") for part in parts]
        cut += "".join(found) != text
    assert cut > 2


@pytest.mark.parametrize(
    ("row", "indices", "what"),
    [
        ([100_000], None, "an id that --tokens_of does not have"),
        ([5, 6], [[0, 3]], "outside of its tokens"),
        ([5, 6], [[-1, 1]], "outside of its tokens"),
        ([5, 6, 7], [[0, 2], [1, 3]], "that overlap"),
        ([5, 6], [0, 2], "no pairs of positions"),
        ([5, 6], [[0.0, 2.0]], "no pairs of positions"),
    ],
)
def test_a_row_that_is_not_this_tokeniser_s_is_refused(llama, row, indices, what):
    with pytest.raises(RecordError, match=what):
        texts(row, indices, llama)


def test_tokenisers_that_do_not_give_texts_back_are_refused(tmp_path, folder):
    description = json.loads((folder / "tokenizer.json").read_text())
    lower = tmp_path / "lower.json"
    lower.write_text(json.dumps(description | {"normalizer": {"type": "Lowercase"}}))
    with pytest.raises(UserError, match="do not give the text again"):
        load_other(lower)
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps(description | {"post_processor": None}))
    with pytest.raises(UserError, match="neither BOS nor EOS"):
        texts([5, 6], None, load_other(bare))
    assert texts([65, 66], [[0, 1], [1, 2]], load_other(bare)) == [
        load_other(bare).tokenizer.decode([i]) for i in (65, 66)
    ]
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UserError, match="wants the tokenizer.json"):
            load_other(path)
    (tmp_path / "not.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer.json"):
        load_other(tmp_path / "not.json")
