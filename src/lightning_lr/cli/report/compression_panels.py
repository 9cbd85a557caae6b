"""The panel of compressed activations: bits over the run, and by how much less is saved for the backward."""

from __future__ import annotations

from matplotlib.axes import Axes

from lightning_lr.cli.figure import COLORS
from lightning_lr.cli.labels import EndLabel, label_ends
from lightning_lr.cli.report.record import RunRecord

BITS, RATIO = "compression/bits", "compression/ratio"


def has_compression(record: RunRecord) -> bool:
    """Whether the run logged what compression did."""
    return all(name in record.metrics and record.metrics[name].finite for name in (BITS, RATIO))


def draw_compression(ax: Axes, record: RunRecord) -> None:
    """Bits per rounded number, and how many times fewer bytes everything saved takes; one axis serves both."""
    labels = []
    for name, color, unit in ((BITS, COLORS[0], " bits, mean of\nwhat is rounded"), (RATIO, COLORS[2], "x less saved")):
        at, values = record.points(name)
        ax.plot(at, values, color=color, drawstyle="steps-post" if name == BITS else "default")
        last = record.metrics[name].finite[-1][1]
        labels.append(EndLabel(record.now, last, f"{last:.2f}{unit}", color))
    ax.set_ylim(0, 1.15 * max(value for name in (BITS, RATIO) for _, value in record.metrics[name].finite))
    label_ends(ax, labels)
