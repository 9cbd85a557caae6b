"""The gradient noise scale, measured: how large a batch still averages out noise rather than repeating itself.

Two gradients of the same weights from batches of two sizes suffice: one device's against the average over devices, or
one micro-batch's against the accumulated one. ``GradientNoiseScale`` logs it, ``AdaptiveRamp`` follows it. Source:
McCandlish, Kaplan, Amodei et al. 2018, arXiv:1812.06162, section 2.2 and appendix A.1.
"""

from __future__ import annotations

import math
from typing import Any

from lightning_lr.checks import is_real, require


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

    def update(self, small_sq_norm: float, big_sq_norm: float, small_batch: int, big_batch: int) -> None:
        """Take the squared norms of two gradients at the same weights into account.

        A measurement with a norm that is not finite (an overflow under AMP) is left out.

        Args:
            small_sq_norm: squared norm of the mean gradient over ``small_batch`` samples, or the mean of several such
                squared norms (of all devices, of all micro-batches), which is less noisy.
            big_sq_norm: squared norm of the mean gradient over ``big_batch`` samples.
            small_batch: B_s, in samples.
            big_batch: B_b, in samples; with a batch that ramps it may change from update to update.

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
        measurements tell nothing: ``None``.
        """
        squared, variance = self.squared_gradient, self.variance
        if squared is None or variance is None or (squared <= 0.0 and variance <= 0.0):
            return None
        return math.inf if squared <= 0.0 else max(0.0, variance) / squared

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
