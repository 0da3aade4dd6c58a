"""What is taken for a word where no library for the language is asked."""

import numpy as np

# Tibetan's tshegs, and Ethiopic's space.
_SEPARATORS = "\u0f0b\u0f0c\u1361"
# Characters for a word, and the blocks of scripts without spaces: kana, Han and Yi; Thai and Lao, Burmese, Khmer, Tai
# Le and New Tai Lue, Tai Tham, Balinese, Javanese, Tai Viet. With these numbers as many pages of a manual repeat
# themselves in Chinese, Japanese and Khmer as in its other languages (see `repetition`).
_WITHOUT_SPACES = (
    (3, "3040-30ff 3400-4dbf 4e00-9fff a000-a4cf f900-faff 20000-3ffff"),
    (5, "0e00-0eff 1000-109f 1780-17ff 1950-19df 1a20-1aaf 1b00-1b7f a980-a9df aa60-aadf"),
)
_BLOCKS = [
    (characters, [[int(x, 16) for x in block.split("-")] for block in blocks.split()])
    for characters, blocks in _WITHOUT_SPACES
]


def code_points(text: str) -> np.ndarray:
    """uint32 [characters]"""
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def characters_of_word(points: np.ndarray) -> int | None:
    """How many characters are a word, where most of a text is in a script without spaces; None where spaces part words.

    Args:
      points: see `code_points`; at least one.
    """
    if points.max() < 0x0E00:
        return None
    counts = [
        sum(np.count_nonzero((points >= first) & (points <= last)) for first, last in blocks)
        for _, blocks in _BLOCKS
    ]
    if 2 * sum(counts) <= np.count_nonzero(points > 0x20):
        return None
    return _BLOCKS[int(counts[1] > counts[0])][0]


def split_words(text: str) -> list[str]:
    """What spaces part; in Tibetan its syllables."""
    for separator in _SEPARATORS:
        text = text.replace(separator, " ")
    return text.split()
