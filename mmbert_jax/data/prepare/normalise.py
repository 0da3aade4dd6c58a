"""One spelling for one text: NFC, one kind of line ending, no control characters."""

import re
import unicodedata

# Unicode 5.8, table 5-1: what stands for the end of a line, a page or a paragraph. To take the rarer ones out with the
# other control characters would join the words on both sides.
_NEWLINES = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
# C0 and C1 without tab and newline; the byte order mark, wherever files were put end to end; what is no character.
_CONTROLS = "\0-\x08\x0b-\x1f\x7f-\x9f\ufeff\ufdd0-\ufdef"
_LAST_OF_PLANES = "".join(chr(plane << 16 | x) for plane in range(17) for x in (0xFFFE, 0xFFFF))
_REMOVED = re.compile(f"[{_CONTROLS}{_LAST_OF_PLANES}]+")
# Whether there may be anything to do: the expressions above take ten times as long, and few texts need them.
_SUSPECTS = (
    re.compile(f"[{_CONTROLS}\u2028\u2029\ufffe\uffff]"),
    re.compile("[\U0001fffe-\U0010ffff]"),
)

UNICODE_VERSION = unicodedata.unidata_version


def normalise(text: str) -> str:
    """The text in NFC, with newlines for all line endings, without control characters and noncharacters.

    Joiners and marks of direction stay: they are spelling in Persian, Hindi or Hebrew. To do it twice is to do it once.
    """
    if any(suspect.search(text) for suspect in _SUSPECTS):
        text = _REMOVED.sub("", _NEWLINES.sub("\n", text))
    return unicodedata.normalize("NFC", text)
