"""A tokeniser like Gemma's from text: sentencepiece BPE with byte fallback, single digits, special tokens 0 to 4."""

import io
import os
from collections.abc import Iterator, Sequence

import sentencepiece

from mmbert_jax.data.progress import Progress
from mmbert_jax.data.sampling import SENTENCE_CHARACTERS
from mmbert_jax.data.sources import Document, Fields, Input, read_documents
from mmbert_jax.data.special_ids import GEMMA, PIECES
from mmbert_jax.errors import UserError

SMALLEST = 5 + 256 + 1  # special tokens, bytes, one piece


def read_all(inputs: Sequence[Input], fields: Fields) -> Iterator[Document]:
    """The documents of all inputs, with a line of progress."""
    progress = Progress("read", sum(item.size for item in inputs))
    documents = 0
    for batch in read_documents(inputs, fields):
        yield from batch.documents
        documents += len(batch.documents)
        progress.advance(batch.bytes_read, {"documents": documents})
    progress.finish({"documents": documents})


def train(sample: dict[str, list[str]], vocab_size: int, character_coverage: float) -> bytes:
    """A serialised sentencepiece model; the text is taken as it is, white space included."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for lines in sample.values() for line in lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            byte_fallback=True,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            pad_id=GEMMA.pad,
            eos_id=GEMMA.eos,
            bos_id=GEMMA.bos,
            unk_id=GEMMA.unk,
            pad_piece=PIECES[GEMMA.pad],
            eos_piece=PIECES[GEMMA.eos],
            bos_piece=PIECES[GEMMA.bos],
            unk_piece=PIECES[GEMMA.unk],
            user_defined_symbols=[PIECES[GEMMA.mask]],
            max_sentence_length=4 * SENTENCE_CHARACTERS,
            num_threads=len(os.sched_getaffinity(0)),
            minloglevel=2,
        )
    except RuntimeError as error:  # sentencepiece's message says which size or coverage would do
        message = str(error).split("] ")[-1]
        raise UserError(f"--vocab_size {vocab_size} does not suit this text: {message}") from None
    return model.getvalue()
