"""How much an SGD update fluctuates, and what batch size keeps that the same when something else changes.

Smith & Le read SGD as a stochastic differential equation whose random force has the scale g below; decaying the
learning rate lowers g, and so does growing the batch, at fewer updates. These three formulas are all that the ramp
needs from the theory; :mod:`~lightning_lr.batch_size.plan` turns them into a run. Source: Smith, Kindermans, Ying & Le
2018, arXiv:1711.00489, sections 2 to 4; Smith & Le 2018, arXiv:1710.06451.
"""

from __future__ import annotations

from torch.optim import Optimizer

from lightning_lr.checks import require_count, require_momentum, require_positive


def noise_scale(lr: float, momentum: float, batch_size: int, dataset_size: int) -> float:
    r"""Return the scale of the random fluctuations of SGD with momentum.

    .. math:: g = \frac{\epsilon}{1 - m} \left(\frac{N}{B} - 1\right)

    A batch that holds the whole data set, or more, has no noise: 0.

    Args:
        lr: learning rate of the update.
        momentum: m, in [0, 1); 0 for SGD without.
        batch_size: B, samples per update over all devices.
        dataset_size: N, samples in the training set.

    Raises:
        ValueError: if momentum is not in [0, 1), or a size is not a positive integer.

    Example:
        >>> [round(noise_scale(0.1, 0.9, batch, 50_000), 1) for batch in (125, 625, 50_000)]
        [399.0, 79.0, 0.0]

    Source: arXiv:1711.00489, eq. 5 with the "- 1" that its approximation for B << N leaves out.
    """
    _check_setting("noise_scale", momentum, batch_size, dataset_size)
    return lr / (1.0 - momentum) * max(0.0, dataset_size / batch_size - 1.0)


def momentum_of(optimizer: Optimizer) -> float:
    """Return m of an optimizer's first group: its momentum, Adam's first beta, or 0."""
    group = optimizer.param_groups[0]
    return float(group["betas"][0] if "betas" in group else group.get("momentum", 0.0))


def scaled_batch_size(batch_size: int, lr: float, momentum: float, new_lr: float, new_momentum: float) -> int:
    r"""Return the batch size that keeps the noise scale when learning rate and momentum change.

    .. math:: B' = B \, \frac{\epsilon' / (1 - m')}{\epsilon / (1 - m)}

    The proportionality holds for B far below the size of the training set. Raise the learning rate first, as far as
    training stays stable, and the momentum only then: see :func:`momentum_transient` for its price.

    Args:
        batch_size: B, samples per update that go with ``lr`` and ``momentum``.
        lr: learning rate now.
        momentum: momentum now, in [0, 1).
        new_lr: learning rate wanted.
        new_momentum: momentum wanted, in [0, 1).

    Returns:
        Samples per update, rounded, at least 1.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> [scaled_batch_size(128, 0.1, 0.9, lr, momentum) for lr, momentum in ((0.2, 0.9), (0.5, 0.9), (0.1, 0.98))]
        [256, 640, 640]

    Source: arXiv:1711.00489, section 3 ("B proportional to the effective learning rate").
    """
    caller = "scaled_batch_size"
    require_count(caller, "batch_size", batch_size, "samples")
    require_positive(caller, "lr", lr, "a learning rate")
    require_positive(caller, "new_lr", new_lr, "a learning rate")
    require_momentum(caller, momentum)
    require_momentum(caller, new_momentum, "new_momentum")
    return max(1, round(batch_size * (new_lr / lr) * (1.0 - momentum) / (1.0 - new_momentum)))


def momentum_transient(batch_size: int, dataset_size: int, momentum: float) -> float:
    r"""Return the epochs that momentum takes to catch up after a change, and at the start, where it begins at zero.

    .. math:: \frac{B}{N (1 - m)}

    Until then updates are too small (or too large, after a drop), so a phase of the run should last several of these.

    Args:
        batch_size: B, samples per update.
        dataset_size: N, samples in the training set.
        momentum: m, in [0, 1).

    Raises:
        ValueError: if momentum is not in [0, 1), or a size is not a positive integer.

    Example:
        >>> [round(momentum_transient(batch, 50_000, 0.9), 4) for batch in (100, 500, 5000)]
        [0.02, 0.1, 1.0]

    Source: arXiv:1711.00489, section 3 and appendix A.
    """
    _check_setting("momentum_transient", momentum, batch_size, dataset_size)
    return batch_size / (dataset_size * (1.0 - momentum))


def _check_setting(caller: str, momentum: float, batch_size: int, dataset_size: int) -> None:
    require_momentum(caller, momentum)
    require_count(caller, "batch_size", batch_size, "samples")
    require_count(caller, "dataset_size", dataset_size, "samples")
