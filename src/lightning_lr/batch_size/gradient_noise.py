"""The gradient noise scale, measured: how large a batch still averages out noise rather than repeating itself.

Two gradients of the same weights from batches of two sizes suffice: those of single micro-batches, and the one that
they add up to over accumulation and devices. :class:`WindowContents` holds which two batch sizes these are, whatever
the micro-batches of the update were; :class:`GradientNoiseEstimator` makes the noise scale of them.
``GradientNoiseScale`` logs it, ``AdaptiveRamp`` follows it. Source: McCandlish, Kaplan, Amodei et al. 2018,
arXiv:1812.06162, section 2.2 and appendix A.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lightning_lr.checks import is_real, require
from lightning_lr.saved_state import COUNT, NUMBER, keys


@dataclass
class WindowContents:
    r"""The micro-batches whose gradients one update has added up, on one device or on all.

    Micro-batch i has :math:`m_i` samples and the mean gradient :math:`g_i`; the update has :math:`g = \sum_i c_i g_i`.
    With :math:`E g_i = G` and :math:`Cov\, g_i = \Sigma / m_i`

    .. math::
        E\,\overline{|g_i|^2} = |G|^2 + tr(\Sigma) / B_s \qquad 1 / B_s = \overline{1 / m_i} \\
        E\,|g|^2 / \big(\textstyle\sum_i c_i\big)^2 = |G|^2 + tr(\Sigma) / B_b \qquad
        1 / B_b = \sum_i c_i^2 / m_i \,\Big/ \big(\sum_i c_i\big)^2

    so that these two are the batch sizes to give :class:`GradientNoiseEstimator`, not numbers of samples. Lightning's
    :math:`c_i` is 1 / accumulation, also in a window that has fewer micro-batches; with equal :math:`c_i`,
    :math:`1 / B_b = \sum_i (1 / m_i) / n^2`. Where a loss is weighted by its samples, :math:`B_b = \sum_i m_i`.

    Example::

        window = WindowContents()
        for size in (32, 32, 32, 4):
            window.add(size, weight=1 / 4)
        window.small_batch, window.big_batch  # 11.64 and 46.55, not 25 and 100
    """

    count: float = 0.0
    """Micro-batches; over all devices, their mean number per device, as of all that follows."""
    inverse_sizes: float = 0.0
    """The sum of 1 / m."""
    weight: float = 0.0
    """The sum of c."""
    weighted_inverse_sizes: float = 0.0
    """The sum of c**2 / m."""
    devices: int = 1
    """Devices whose gradients are averaged."""

    def add(self, size: float, weight: float) -> None:
        """Add the gradient of a micro-batch.

        Args:
            size: m, its samples; NaN where they are not known, which makes the whole window not comparable.
            weight: c, what its mean gradient is multiplied by before it is added.
        """
        self.count += 1
        self.inverse_sizes += 1.0 / size
        self.weight += weight
        self.weighted_inverse_sizes += weight**2 / size

    def sums(self) -> list[float]:
        """Four numbers, of which the devices take the mean for :meth:`over_devices`."""
        return [self.count, self.inverse_sizes, self.weight, self.weighted_inverse_sizes]

    @classmethod
    def over_devices(cls, mean_sums: Sequence[float], devices: int) -> WindowContents:
        """What all devices have added up, whose gradients are averaged, from the mean of their :meth:`sums`."""
        count, inverse_sizes, weight, weighted_inverse_sizes = mean_sums
        return cls(count, inverse_sizes, weight, weighted_inverse_sizes, devices)

    @property
    def is_comparable(self) -> bool:
        """Whether there are two gradients to compare, from batches of known sizes."""
        return self.count * self.devices > 1 and self.weight != 0 and 0 < self.small_batch < self.big_batch

    @property
    def small_batch(self) -> float:
        """B_s, in samples."""
        return self.count / self.inverse_sizes

    @property
    def big_batch(self) -> float:
        """B_b, in samples: that of which the update's gradient is as noisy as a plain mean over so many."""
        return self.weight**2 / self.weighted_inverse_sizes * self.devices


class GradientNoiseEstimator:
    r"""Estimates the simple noise scale :math:`B_{simple} = tr(\Sigma) / |G|^2`, in samples.

    With :math:`g_s, g_b` the mean gradients over :math:`B_s < B_b` samples, unbiased estimates are

    .. math::
        |G|^2 \approx \frac{B_b |g_b|^2 - B_s |g_s|^2}{B_b - B_s} \qquad
        tr(\Sigma) \approx \frac{|g_s|^2 - |g_b|^2}{1 / B_s - 1 / B_b}

    Each is averaged by an exponential moving average of its own, corrected for its start at zero; the ratio of the two
    averages is the answer. (An average of ratios would be biased: the denominator is noisy and can be negative.)

    Args:
        smoothing: what an average keeps at each update, in [0, 1); 0.95 remembers about 20 updates.

    Raises:
        ValueError: if smoothing is outside its range.

    Source: arXiv:1812.06162, appendix A.1.
    """

    def __init__(self, smoothing: float = 0.95) -> None:
        allowed = is_real(smoothing) and 0 <= smoothing < 1
        require(allowed, "GradientNoiseEstimator", "smoothing", smoothing, "a number in [0, 1)")
        self.smoothing = float(smoothing)
        self.updates = 0
        """Measurements taken."""
        self._squared_gradient = 0.0
        self._variance = 0.0

    def update(self, small_sq_norm: float, big_sq_norm: float, small_batch: float, big_batch: float) -> None:
        """Take the squared norms of two gradients at the same weights into account.

        A measurement with a norm that is not finite (an overflow under AMP) is left out.

        Args:
            small_sq_norm: squared norm of the mean gradient over ``small_batch`` samples, or the mean of several such
                squared norms (of all devices, of all micro-batches), which is less noisy.
            big_sq_norm: squared norm of the mean gradient over ``big_batch`` samples.
            small_batch: B_s, in samples; where sizes differ no whole number, see :class:`WindowContents`.
            big_batch: B_b, in samples; it may change from update to update.

        Raises:
            ValueError: if not 0 < small_batch < big_batch.
        """
        if not 0 < small_batch < big_batch:
            raise ValueError(
                f"GradientNoiseEstimator: small_batch={small_batch!r} and big_batch={big_batch!r} are not two batch "
                "sizes, the smaller first; it takes more than one device or accumulation"
            )
        if not (math.isfinite(small_sq_norm) and math.isfinite(big_sq_norm)):
            return
        squared = (big_batch * big_sq_norm - small_batch * small_sq_norm) / (big_batch - small_batch)
        variance = (small_sq_norm - big_sq_norm) / (1.0 / small_batch - 1.0 / big_batch)
        self.updates += 1
        self._squared_gradient += (1.0 - self.smoothing) * (squared - self._squared_gradient)
        self._variance += (1.0 - self.smoothing) * (variance - self._variance)

    @property
    def squared_gradient(self) -> float | None:
        """Estimate of |G|**2, the true gradient's squared norm; can come out negative, as it is unbiased."""
        return self._corrected(self._squared_gradient)

    @property
    def variance(self) -> float | None:
        """Estimate of tr(Sigma), the variance of one sample's gradient; can come out negative, as it is unbiased."""
        return self._corrected(self._variance)

    @property
    def value(self) -> float | None:
        """B_simple in samples; ``None`` before the first measurement.

        An estimate of |G|**2 that is not positive means that the gradient is lost in its noise at these batch sizes:
        infinity. One of tr(Sigma) that is not positive means that no noise shows: 0. Where neither is positive, the
        measurements show nothing: ``None``.
        """
        squared, variance = self.squared_gradient, self.variance
        if squared is None or variance is None or (squared <= 0.0 and variance <= 0.0):
            return None
        return math.inf if squared <= 0.0 else max(0.0, variance) / squared

    SAVED: ClassVar = keys({"updates": COUNT, "squared_gradient": NUMBER, "variance": NUMBER})
    """The form of :meth:`state_dict`."""

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers from which :meth:`load_state_dict` continues."""
        return {
            "updates": self.updates,
            "squared_gradient": self._squared_gradient,
            "variance": self._variance,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken."""
        self.updates = int(state["updates"])
        self._squared_gradient = float(state["squared_gradient"])
        self._variance = float(state["variance"])

    def _corrected(self, average: float) -> float | None:
        return average / (1.0 - self.smoothing**self.updates) if self.updates else None
