"""Records that cannot be read: why, how many, and where the first ones are."""

from dataclasses import dataclass, field

from mmbert_jax.errors import UserError

# Messages that are kept of each reason.
_FIRST = 3


class RecordError(UserError):
    """A single record that cannot be read; the next one may be.

    Attributes:
      reason: what it has in common with others.
      place: what its message begins with; it is spelled out (`str`) only for who reads the message.
    """

    def __init__(self, reason: str, place: object, message: str):
        super().__init__(message)
        self.reason, self.place, self.message = reason, place, message

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"

    def __reduce__(self):  # it comes from other processes
        return type(self), (self.reason, str(self.place), self.message)


@dataclass
class Faults:
    """Reason -> how many records, and what was said of the first ones."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, list[str]] = field(default_factory=dict)

    def add(self, error: RecordError) -> None:
        self.counts[error.reason] = self.counts.get(error.reason, 0) + 1
        first = self.first.setdefault(error.reason, [])
        if len(first) < _FIRST:
            first.append(str(error))

    def merge(self, other: "Faults") -> None:
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            first = self.first.setdefault(reason, [])
            first += other.first[reason][: _FIRST - len(first)]

    def table(self) -> str:
        """Lines for the user, the most frequent reason first."""
        lines = []
        for reason, count in sorted(self.counts.items(), key=lambda item: (-item[1], item[0])):
            lines.append(f"{count:>12,}  {reason}")
            lines += [f"{'':>14}{message}" for message in self.first[reason]]
        return "\n".join(lines)
