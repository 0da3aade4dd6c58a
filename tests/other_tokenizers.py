"""Tokenisers of other families than Gemma's, trained by `tokenizers` on a few sentences: ModernBERT's, XLM-R's."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

WORDS = (
    "the cat and dog is a land island end of all there that is not other ones rest, long way from"
    " here. But was when he said: it goes on! Überall naïve 東京 данные (again) 3.14 half-way"
).split()


def sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences of four to thirty words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(4, 30))) for _ in range(count)]


def byte_level(texts: Sequence[str] | None = None, vocab_size: int = 400) -> tokenizers.Tokenizer:
    """Like ModernBERT's: byte-level BPE with a few special tokens in front, most at the end, and unused ones last."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts or sentences(300), trainer)
    added = tokenizers.AddedToken
    tokenizer.add_tokens([added("|||IP_ADDRESS|||", special=True), added("  ", special=False)])
    special = [added(f"[{name}]", special=True) for name in ("UNK", "CLS", "SEP", "PAD")]
    tokenizer.add_tokens([*special, added("[MASK]", special=True, lstrip=True, normalized=False)])
    tokenizer.add_tokens([added(f"[unused{i}]", special=False) for i in range(4)])
    return _around(tokenizer, "[CLS]", "[SEP]")


def llama(texts: Sequence[str], vocab_size: int = 600) -> tokenizers.Tokenizer:
    """Like Llama 3's: byte-level BPE, special tokens behind the vocabulary, BOS before a text and nothing behind it."""
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        special_tokens=[("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))],
    )
    return tokenizer


def unigram(texts: Sequence[str] | None = None, vocab_size: int = 300) -> tokenizers.Tokenizer:
    """Like XLM-R's: <s>, <pad>, </s>, <unk> in front and <mask> last, all of them in the vocabulary."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        initial_alphabet=list("<>/sabcdefghijklmnopqrtuvwxyz"),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts or sentences(300), trainer)
    description = json.loads(tokenizer.to_str())
    description["model"]["vocab"].append(["<mask>", 0.0])
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(description))
    tokenizer.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=True, normalized=False)])
    return _around(tokenizer, "<s>", "</s>")


def _around(tokenizer, bos: str, eos: str) -> tokenizers.Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        pair=f"{bos} $A {eos} $B {eos}",
        special_tokens=[(piece, tokenizer.token_to_id(piece)) for piece in (bos, eos)],
    )
    return tokenizer


# Kind -> role -> piece.
KINDS = {
    "byte_level": {
        "pad": "[PAD]",
        "eos": "[SEP]",
        "bos": "[CLS]",
        "unk": "[UNK]",
        "mask": "[MASK]",
    },
    "unigram": {"pad": "<pad>", "eos": "</s>", "bos": "<s>", "unk": "<unk>", "mask": "<mask>"},
}


@functools.cache
def _trained(kind: str) -> str:
    """Made once: a Unigram comes out otherwise each time."""
    return {"byte_level": byte_level, "unigram": unigram}[kind]().to_str()


def make(kind: str) -> tokenizers.Tokenizer:
    """A tokeniser of a kind."""
    return tokenizers.Tokenizer.from_str(_trained(kind))


def write(kind: str, folder: Path) -> Path:
    """Writes tokenizer.json of a kind into a new folder, and nothing that names its special tokens."""
    folder.mkdir(parents=True)
    make(kind).save(str(folder / "tokenizer.json"))
    return folder


def write_by_transformers(
    kind: str, folder: Path, tokenizer: tokenizers.Tokenizer | None = None
) -> Path:
    """Writes the files that `transformers` makes of it, or of another tokeniser of its kind."""
    from transformers import PreTrainedTokenizerFast

    pieces = KINDS[kind]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer or make(kind),
        pad_token=pieces["pad"],
        cls_token=pieces["bos"],
        sep_token=pieces["eos"],
        unk_token=pieces["unk"],
        mask_token=tokenizers.AddedToken(pieces["mask"], lstrip=True, normalized=False),
    ).save_pretrained(folder)
    return folder
