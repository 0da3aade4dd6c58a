"""The special tokens: Gemma's, on which packing, masking and the exported model agree."""

PAD, EOS, BOS, UNK, MASK = range(5)

# In order of their ids.
PIECES = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
