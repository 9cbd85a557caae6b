"""What a search came to: the rate, its interval, what it cost, and everything that was tried."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class SearchResult:
    """The learning rate that a search has found.

    Args:
        rate: the rate, of the group with the largest base rate.
        low: lowest rate that may as well be the best.
        high: highest such rate.
        price: updates that the race took; a forward pass counts as a third of one.
        at: share of the run at which it took place.
        heats: by heat, what was tried: ``rate``, ``losses`` of the updates, ``scores`` after the decay to zero.
        band: the Gaussian process over the last heat's scores: ``lr``, ``mean``, ``sd``; ``None`` without one.
        warning: what is wrong with the evidence, or ``""``.
        held: rates that were held without a decay, to see whether training stays stable: twice the chosen one, and
            twice those that were given up because it did not; ``rate``, ``losses``, ``scores``.

    Example::

        result = find_learning_rate(Trainer(max_epochs=5), module, data)
        module.lr = result.rate
        result.save("learning_rate.png")
    """

    rate: float
    low: float
    high: float
    price: float
    at: float
    heats: list[list[dict[str, Any]]]
    band: dict[str, list[float]] | None
    warning: str = ""
    held: list[dict[str, Any]] = field(default_factory=list)

    def figure(self) -> Figure:
        """The scores of every heat, the Gaussian process's band and the choice."""
        from lightning_lr.search_picture import draw

        return draw(self.facts())

    def save(self, path: str | Path) -> None:
        """Save the picture; the format follows from the ending.

        Args:
            path: for example ``"learning_rate.png"``.
        """
        self.figure().savefig(path, dpi=120)

    def __str__(self) -> str:
        return (
            f"learning rate {self.rate:.3g} (interval {self.low:.2g} to {self.high:.2g}), found in "
            f"{self.price:,.0f} updates"
        )

    def facts(self) -> dict[str, Any]:
        """Plain values, for journals and states."""
        return dict(vars(self))

    def _repr_html_(self) -> str:
        import base64
        import io

        image = io.BytesIO()
        self.figure().savefig(image, format="png", dpi=90)
        picture = base64.b64encode(image.getvalue()).decode()
        return f'<p>{self}</p><img alt="Scores of the rates that were tried" src="data:image/png;base64,{picture}">'
