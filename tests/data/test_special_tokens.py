"""Special tokens of any tokeniser: which they are, what texts that spell them become, and that masks are found."""

import gzip
import io
import json

import pytest
import sentencepiece
from other_tokenizers import KINDS, make, sentences, write
from shared_data import shared_file
from small_tokenizer import write_small_tokenizer

from mmbert_jax.data.special_ids import GEMMA, SpecialIds, as_ranges, from_record
from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.data.tokenizer_identity import describe_tokenizer, same_tokenizer
from mmbert_jax.errors import UserError


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return write(kind, tmp_path_factory.mktemp("tokenizers") / kind)


def changed(kind, folder, change=lambda description: None, **names):
    """A tokenizer.json of a kind with something else in it, and the names in its tokenizer_config.json."""
    file = write(kind, folder) / "tokenizer.json"
    description = json.loads(file.read_text())
    change(description)
    file.write_text(json.dumps(description))
    if names:
        (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def added(description, piece):
    return next(t for t in description["added_tokens"] if t["content"] == piece)


# --- which they are ---


def test_ids_are_the_librarys(kind, folder):
    special, pieces = load_tokenizer(folder).special, KINDS[kind]
    assert load_tokenizer(folder).pieces == pieces
    ids = make(kind).get_vocab()
    for role, piece in pieces.items():
        assert getattr(special, role) == ids[piece]


def reserved(tokenizer):
    return {i for start, stop in tokenizer.special.reserved() for i in range(start, stop)}


def test_other_special_tokens_are_reserved(tmp_path):
    ids = make("byte_level").get_vocab()
    special = {"[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"}
    special |= {"<|endoftext|>", "<|padding|>", "|||IP_ADDRESS|||"}
    tokenizer = load_tokenizer(write("byte_level", tmp_path / "t"))
    assert reserved(tokenizer) == {ids[piece] for piece in special}


def test_holes_are_reserved(tmp_path):
    """With special tokens in the vocabulary, as old ones have them: 332 pieces, and one with the id 600."""
    file = write_small_tokenizer(tmp_path / "t") / "tokenizer.json"
    description = json.loads(file.read_text())
    description["model"]["vocab"]["Zz"] = 600
    file.write_text(json.dumps(description))
    tokenizer = load_tokenizer(tmp_path / "t")
    size = len(description["model"]["vocab"]) - 1
    assert reserved(tokenizer) == {*range(5), *range(size, 600)}
    assert tokenizer.vocab_size == 601


@pytest.mark.parametrize("id_in_file", [387, 500])
def test_added_tokens_that_the_library_numbers_otherwise_are_refused(tmp_path, id_in_file):
    """It counts on from the vocabulary, whatever the file says."""

    def change(description):
        description["added_tokens"].append(
            added(description, "[SEP]") | {"id": id_in_file, "content": "[x]"}
        )

    folder = changed("byte_level", tmp_path / "t", change)
    if id_in_file == 387:
        assert load_tokenizer(folder).vocab_size == 388
        return
    with pytest.raises(
        UserError,
        match=r"the added token \[x\] has the id 500 there, but `tokenizers` gives it 387",
    ):
        load_tokenizer(folder)


def test_a_file_beside_it_names_them(tmp_path):
    """cls_token is what stands in front, whatever bos_token is; a token may be written with its flags."""
    names = {"pad_token": "[PAD]", "bos_token": "[unused0]", "eos_token": "[unused1]"}
    names |= {"cls_token": "[CLS]", "sep_token": {"content": "[SEP]", "lstrip": False}}
    folder = changed("byte_level", tmp_path / "t", mask_token="[MASK]", unk_token="[UNK]", **names)
    assert (
        load_tokenizer(folder).special
        == load_tokenizer(write("byte_level", tmp_path / "u")).special
    )
    del names["cls_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(names | {"mask_token": "[MASK]"}))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pieces["bos"] == "[unused0]"
    assert tokenizer.special.unk is None
    assert [file.name for file in tokenizer.files()] == ["tokenizer.json", "tokenizer_config.json"]


def test_the_same_file_used_otherwise_is_another_tokeniser(tmp_path):
    names = {"pad_token": "[PAD]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    a, b = (
        describe_tokenizer(
            load_tokenizer(changed("byte_level", tmp_path / name, **names, cls_token=piece))
        )
        for name, piece in (("a", "[CLS]"), ("b", "[unused0]"))
    )
    assert a["sha256"] == b["sha256"]
    assert same_tokenizer(a, dict(a))
    assert not same_tokenizer(a, b)


@pytest.mark.parametrize("piece", ["[CLS]", "[MASK]"])
def test_a_missing_one_is_named(tmp_path, piece):
    def rename(description):
        added(description, piece)["content"] = "[other]"
        description["post_processor"] = None

    with pytest.raises(
        UserError, match=r"no token is known for (bos \(cls_token|mask \(mask_token)"
    ):
        load_tokenizer(changed("byte_level", tmp_path / "t", rename))


def test_a_mask_that_is_the_padding_too(tmp_path):
    names = dict.fromkeys(("pad_token", "mask_token"), "[PAD]")
    names |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    with pytest.raises(UserError, match=r"\[PAD\] is the mask and another special token as well"):
        load_tokenizer(changed("byte_level", tmp_path / "t", **names))


def test_records():
    assert from_record(None) == from_record({"sha256": "a"}) == GEMMA
    assert (
        from_record({"special_ids": {"pad": 0, "eos": 1, "bos": 2, "unk": 3, "mask": 4}}) == GEMMA
    )
    special = SpecialIds(9, 8, 7, None, 5, ((0, 2), (10, 12)))
    record = json.loads(json.dumps({"special_ids": special.to_dict()}))
    assert from_record(record) == special
    assert special.reserved() == ((0, 2), (5, 6), (7, 12))
    assert special.never_in_texts() == ((0, 2), (7, 12))
    assert as_ranges({3, 1, 2, 7}) == ((1, 4), (7, 8))


# --- texts that spell them ---


def test_special_tokens_in_a_text_are_letters(kind, folder):
    tokenizer = load_tokenizer(folder)
    never = [i for start, stop in tokenizer.special.never_in_texts() for i in range(start, stop)]
    pieces = KINDS[kind]
    for role in ("pad", "eos", "bos"):
        for text in ("{}", "a {} b", "a{}b", "{0}{0}"):
            ids = tokenizer.encode(text.format(pieces[role]))
            assert not set(ids) & set(never)
            assert tokenizer.decode(ids).replace(" ", "") == text.format(pieces[role]).replace(
                " ", ""
            )


def test_other_texts_are_as_the_library_has_them(kind, folder):
    """Also those with characters that a Unigram does not know, whose penalty hangs on all scores."""
    tokenizer, library = load_tokenizer(folder), make(kind)
    texts = [*sentences(200, seed=3), "ᚠ ☃ ᚠᚠ the☃cat", "  two  spaces ", ""]
    assert tokenizer.encode_batch(texts) == [
        encoding.ids for encoding in library.encode_batch(texts, add_special_tokens=False)
    ]


# --- masks ---


@pytest.mark.parametrize("text", ["the end{}.", "{} {}", "a {} b", "a{}b", "  {}", "x{}{}y"])
def test_masks_are_as_the_library_has_them(kind, folder, text):
    text = text.format(*[KINDS[kind]["mask"]] * 2)
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode(text)
    assert ids == make(kind).encode(text, add_special_tokens=False).ids
    assert ids.count(tokenizer.special.mask) == text.count(KINDS[kind]["mask"])


def test_a_mask_that_is_found_as_a_word_only_is_refused(tmp_path):
    folder = changed(
        "byte_level", tmp_path / "t", lambda d: added(d, "[MASK]").update(single_word=True)
    )
    with pytest.raises(UserError, match=r"MASK\] is not found in the text 'a\[MASK\]b'; it has to"):
        load_tokenizer(folder)


@pytest.mark.parametrize("flags", [{"single_word": True}, None])
def test_gemmas_mask_as_a_word_or_not_added_is_refused(tmp_path, flags):
    file = write_small_tokenizer(tmp_path / "t") / "tokenizer.json"
    description = json.loads(file.read_text())
    if flags:
        added(description, "<mask>").update(flags)
    else:
        description["added_tokens"] = description["added_tokens"][:4]
    file.write_text(json.dumps(description))
    with pytest.raises(
        UserError, match="<mask> is not found in the text .*one of the added tokens"
    ):
        load_tokenizer(tmp_path / "t")


def train_sentencepiece(folder, symbols="user_defined_symbols", **options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences(300)),
        model_writer=model,
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        **{symbols: ["<mask>"]},
        **{f"{name}_id": i for i, name in enumerate(("pad", "eos", "bos", "unk"))},
        **{f"{name}_piece": f"<{name}>" for name in ("pad", "eos", "bos", "unk")},
        **options,
    )
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder


@pytest.fixture(scope="module", params=[True, False], ids=["dummy prefix", "as it stands"])
def model(request, tmp_path_factory):
    """A sentencepiece model that adds a space in front of a text and takes extra ones away, or does neither."""
    return train_sentencepiece(
        tmp_path_factory.mktemp("models") / "model",
        add_dummy_prefix=request.param,
        remove_extra_whitespaces=request.param,
    )


def test_what_is_behind_a_mask_has_no_space_of_its_own(model):
    """The pieces on both sides are those that they are with a word in the mask's place."""
    tokenizer = load_tokenizer(model)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model / "tokenizer.model"))
    pieces = [processor.id_to_piece(i) for i in tokenizer.encode("the <mask>land")]
    at = pieces.index("<mask>")
    assert "".join(pieces[at + 1 :]) == "land"
    assert "".join(pieces[:at]).strip("▁") == "the"
    assert tokenizer.encode("the   <mask> land") == tokenizer.encode("the<mask> land")
    before = processor.encode("the")
    assert tokenizer.encode("the <mask>")[:-1] == before
    for text in ("<mask> land", " <mask> land"):
        found = [processor.id_to_piece(i) for i in tokenizer.encode(text)]
        assert found[0] == "<mask>"
        assert "".join(found[1:]) == "▁land"


def test_a_sentencepiece_mask_that_texts_cannot_have_is_refused(tmp_path):
    folder = train_sentencepiece(tmp_path / "t", symbols="control_symbols")
    with pytest.raises(UserError, match="<mask> is not found in the text .*user-defined symbol"):
        load_tokenizer(folder)


# --- what a prediction is called ---


def test_a_token_keeps_its_leading_space(kind, folder, model):
    """Decoders of a whole text drop the space at its head; a token's text is what it adds to one."""
    for path in (folder, model):
        tokenizer = load_tokenizer(path)
        ids = tokenizer.encode("the cat and dog")
        texts = [tokenizer.token_text(i) for i in ids]
        assert "".join(texts).strip() == "the cat and dog"
        assert sum(text.startswith(" ") for text in texts) >= 3
        assert tokenizer.decode(ids[-1:]).strip() == texts[-1].strip()


def test_a_token_of_gemmas_kind_with_a_stripping_decoder(tmp_path):
    file = write_small_tokenizer(tmp_path / "t") / "tokenizer.json"
    description = json.loads(file.read_text())
    description["decoder"]["decoders"].append(
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    )
    file.write_text(json.dumps(description))
    tokenizer = load_tokenizer(tmp_path / "t")
    [i] = tokenizer.encode(" the")
    assert tokenizer.decode([i]) == "the"
    assert tokenizer.token_text(i) == " the"
    assert tokenizer.token_text(0) == ""


# --- the real one ---


def test_gemmas_own_tokeniser_gives_the_librarys_tokens(tmp_path):
    """Pages in many scripts, by transformers, and that tabs, newlines and runs of spaces come back."""
    transformers = pytest.importorskip("transformers")
    path = tmp_path / "tokenizer.json"
    path.write_bytes(gzip.decompress(shared_file("gemma2_tokenizer.json.gz").read_bytes()))
    tokenizer = load_tokenizer(path)
    assert tokenizer.vocab_size == 256_000
    assert tokenizer.special == SpecialIds(0, 1, 2, 3, 4, ((106, 108),))  # turns of a conversation
    library = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
    with gzip.open(shared_file("help.jsonl.gz"), "rt", encoding="utf-8") as lines:
        texts = [
            json.loads(line)["text"]
            for i, line in zip(range(6000), lines, strict=False)
            if not i % 60
        ]
    texts += [
        "a\tb\n\n\nc",
        " " * 40 + "x" + " " * 7,
        "<table><b>\r\n",
        "".join(map(chr, range(1, 256))),
    ]
    assert tokenizer.encode_batch(texts) == library(texts, add_special_tokens=False)["input_ids"]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert tokenizer.decode(ids) == text
