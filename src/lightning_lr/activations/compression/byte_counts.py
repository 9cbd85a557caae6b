"""How many bytes a forward pass saved for its backward, and how many were held in their place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class SavedKind(NamedTuple):
    """What bytes are counted by."""

    codec: str
    """``kept`` as it is, ``exact`` but smaller, or the bits of what is rounded: ``4 bit``."""
    operation: str
    """The torch function that saved them."""
    module: str
    """The module that ran."""


class Size(NamedTuple):
    """Bytes without compression and with it."""

    raw: int
    held: int


@dataclass
class Tally:
    """What one forward pass saved, each tensor counted once.

    Not counted are parameters, buffers and the batch, which are there anyway, and autocast's copies of parameters.

    Attributes:
        rounded: by bits, how many numbers were rounded to them.
        parts: bytes by codec, operation and module.
    """

    rounded: dict[int, int] = field(default_factory=dict)
    parts: dict[SavedKind, Size] = field(default_factory=dict)

    @property
    def raw_bytes(self) -> int:
        """Bytes without compression."""
        return sum(size.raw for size in self.parts.values())

    @property
    def held_bytes(self) -> int:
        """Bytes with compression."""
        return sum(size.held for size in self.parts.values())

    @property
    def ratio(self) -> float:
        """Raw over held bytes; 1 where nothing was saved."""
        held = self.held_bytes
        return self.raw_bytes / held if held else 1.0

    @property
    def mean_bits(self) -> float:
        """Bits per number, without the groups' metadata, over the tensors that were rounded; 0 where none was."""
        count = sum(self.rounded.values())
        return sum(bits * numbers for bits, numbers in self.rounded.items()) / count if count else 0.0

    def by(self, what: str) -> dict[str, Size]:
        """Bytes by ``"codec"``, ``"operation"`` or ``"module"``, the largest held first."""
        total: dict[str, Size] = {}
        for part, size in self.parts.items():
            before = total.get(getattr(part, what), Size(0, 0))
            total[getattr(part, what)] = Size(before.raw + size.raw, before.held + size.held)
        return dict(sorted(total.items(), key=lambda item: -item[1].held))

    def add(self, part: SavedKind, raw: int, held: int) -> None:
        """Count one tensor."""
        before = self.parts.get(part, Size(0, 0))
        self.parts[part] = Size(before.raw + raw, before.held + held)


_HOW = {"kept": "kept as they are", "exact": "of exact masks and integers"}


def described(by_codec: dict[str, Size]) -> str:
    """Bytes by codec in one line."""
    raw, held = (sum(size[i] for size in by_codec.values()) for i in (0, 1))
    if not held:
        return "nothing is saved"
    shares = ", ".join(f"{size.held:,} {_HOW.get(codec, f'at {codec}')}" for codec, size in by_codec.items())
    return f"{held:,} bytes in place of {raw:,} ({raw / held:.2f}x less): {shares}"
