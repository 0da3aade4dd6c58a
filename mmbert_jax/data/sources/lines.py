"""One line of JSONL: the reader that all programs have in common, so that they take and refuse the same."""

import json
from typing import Any

from mmbert_jax.data.sources.faults import RecordError

# What some editors write in front of a text in UTF-8. It is no part of the text, nor of JSON; where files were put
# together it stands in front of a line in the middle.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_ABSENT = object()


def is_blank(line: bytes) -> bool:
    """Whether a line has no record: nothing but white space, or a byte order mark."""
    rest = line.removeprefix(BYTE_ORDER_MARK)
    return not rest or rest.isspace()


def parse_object(line: bytes, place: object) -> dict[str, Any]:
    """The JSON object that a line holds.

    Args:
      place: what an error is to begin with; it is spelled out (`str`) only then.

    Raises:
      RecordError: invalid UTF-8 or JSON, or another value; the message begins with `place`.
    """
    text = decode(line, place).removeprefix("\ufeff")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError also for numbers of absurd length
        message = f"invalid JSON ({error}); every line has to be one JSON object"
        raise RecordError("invalid JSON", place, message) from None
    if not isinstance(value, dict):
        kind = type(value).__name__
        message = f"a JSON {kind} where one JSON object a line is expected"
        raise RecordError(f"a JSON {kind}, no object", place, message)
    return value


def string_field(
    value: dict[str, Any], field: str, option: str, place: object
) -> tuple[str, bytes]:
    """The string in a field of a record, and the same in UTF-8, as which it may be given, too.

    Dots in a field's name reach into objects, unless a field has that very name.

    Raises:
      RecordError: there is none, or it is no valid Unicode; `option` names the one that names the field.
    """
    text = find_field(value, field)
    if text is _ABSENT:
        message = f"no field {field!r}, only {', '.join(map(repr, value))}; name the right one with {option}"
        raise RecordError(f"no field {field!r}", place, message)
    if isinstance(text, bytes):
        return decode(text, place, f"field {field!r}: "), text
    if not isinstance(text, str):
        what = f"field {field!r} is a {type(text).__name__}"
        message = f"{what} where a string is expected; name another one with {option} or remove the record"
        raise RecordError(what, place, message)
    try:
        return text, text.encode("utf-8")
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
        what = f"field {field!r} holds half a surrogate pair"
        message = f"{what}, which is not valid Unicode; remove it"
        raise RecordError(what, place, message) from None


def find_field(value: dict[str, Any], field: str) -> Any:
    """What a field holds; `_ABSENT` where there is none."""
    if field in value or "." not in field:
        return value.get(field, _ABSENT)
    found: Any = value
    for key in field.split("."):
        if not isinstance(found, dict) or key not in found:
            return _ABSENT
        found = found[key]
    return found


def has_field(value: dict[str, Any], field: str) -> bool:
    return find_field(value, field) is not _ABSENT


def decode(record: bytes, place: object, what: str = "") -> str:
    """Text in UTF-8; RecordError for what is none, `what` of the record at `place` it is."""
    try:
        return record.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"{what}invalid UTF-8 at byte {error.start}; convert the file to UTF-8 or remove the text"
        raise RecordError("invalid UTF-8", place, message) from None
