"""The course of an adaptive warm-up: climb, test, switch, decay; and what to do when the loss takes off before that.

All decisions of ``AdaptiveWarmup`` are made here, without a Trainer. The flow of one update::

    lr = machine.lr(progress)                        before it: the learning rate to use
    machine.observe(lr, loss)                        after it: costs no wait for the device
    decision = machine.decide(progress)              None, unless a test is due or the loss diverged
    if decision is not None: machine.apply(decision) where ranks train together, after broadcasting that of rank 0

Source: AutoWU, Kim et al. 2021, arXiv:2107.05855; what is different is noted where it is decided. Pure torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lightning_lr.curves import SNAP
from lightning_lr.gaussian_process.posterior import FEWEST_BLOCKS
from lightning_lr.saved_state import ABOVE_0, COUNT, MEASURED, SHARE, TEXT, alike, keys, one_of, optional, row, several
from lightning_lr.warmup.decision import Action, Decision, Reason
from lightning_lr.warmup.divergence import DivergenceWatch, Maximum, limit_of
from lightning_lr.warmup.history import LossHistory
from lightning_lr.warmup.settings import WarmupSettings
from lightning_lr.warmup.switch import SwitchTest, look, picture, safe_lr

Reduce = Callable[[Tensor], Tensor]
"""Mean over the ranks of the losses since the last test: a vector on their device, or on the host after a resume."""


class WarmupMachine:
    """An adaptive warm-up, from its first update to the end of the run.

    Args:
        settings: the user's.
        total_updates: updates in the whole run.
        maximum: the maximum over the ranks of a scalar, where a run has several; called after every update of the
            warm-up, with the loss (not finite: plus infinity).

    Raises:
        ValueError: where the run is too short for ``patience`` tests.
    """

    def __init__(self, settings: WarmupSettings, total_updates: int, maximum: Maximum | None = None) -> None:
        self.settings = settings
        self.check_every = settings.updates_between_tests(total_updates)
        """Updates between two tests."""
        self.phase: Literal["warm-up", "decay"] = "warm-up"
        self.reason: Reason | None = None
        """Why the warm-up ended, once it has."""
        self.peak_lr: float | None = None
        """Learning rate from which the decay began, once it has."""
        self.switched_at: float | None = None
        """Progress at which it began."""
        self.probability = 0.0
        """Of the last test: that the smoothed loss has risen above its lowest point."""
        self.history = LossHistory()
        self.last_read: list[tuple[float, float]] = []
        """Learning rate and loss of the updates that the last test read, for the journal."""
        self._positive = 0
        self._kept_lr: float | None = None  # at the state that is kept for a rollback
        self._lrs: list[float] = []
        self._losses: list[Tensor | float] = []
        self._watch = DivergenceWatch(maximum)
        import_module("lightning_lr.gaussian_process.model")  # takes a second: now, and not inside the first test

    # ------------------------------------------------------------------ every update
    def lr(self, progress: float, width: float = 0.0) -> float:
        """Learning rate of an update.

        In the warm-up that of :meth:`WarmupSettings.climb`, then ``peak_lr decay((progress - s) / (1 - s))`` with s the
        progress at the switch.

        Args:
            progress: share of the run done before the update.
            width: share of the run that the update covers.
        """
        if self.peak_lr is None or self.switched_at is None:
            return self.settings.climb(progress)
        left = max(SNAP, 1.0 - self.switched_at)
        return self.peak_lr * self.settings.decay(max(0.0, progress - self.switched_at) / left, width / left)

    def observe(self, lr: float, loss: Tensor | float) -> None:
        """Remember an update that the optimizer made (one that an AMP scaler skipped is none).

        Args:
            lr: learning rate that it used.
            loss: its mean loss, a scalar; of a tensor a copy stays on the device until the next test.
        """
        if self.phase != "warm-up":
            return
        self._lrs.append(lr)
        if isinstance(loss, Tensor):
            dtype = loss.dtype if loss.dtype == torch.float64 else torch.float32
            loss = loss.detach().reshape(()).to(dtype, copy=True)
        self._losses.append(loss)
        self._watch.observe(loss)

    def observe_skipped(self, loss: Tensor | float) -> None:
        """Look at the loss of an update that an AMP scaler skipped: no evidence, but it may be a divergence.

        Args:
            loss: its mean loss, a scalar.
        """
        if self.phase == "warm-up":
            self._watch.observe(loss)

    def stretch(self, factor: float) -> None:
        """Go on in a run whose length is known anew: every share of it that is remembered changes by ``factor``."""
        if self.switched_at is not None:
            self.switched_at = min(1.0, self.switched_at * factor)

    def due(self, progress: float) -> bool:
        """Whether a test is due after the last update.

        Args:
            progress: share of the run done.
        """
        if self.phase != "warm-up" or not self._lrs:
            return False
        if progress >= self.settings.max_warmup - SNAP:
            return True
        seen = self.history.observed + len(self._lrs)
        return len(self._lrs) >= self.check_every and seen >= FEWEST_BLOCKS

    def decide(self, progress: float, reduce: Reduce | None = None) -> Decision | None:
        """Look at the loss, where a test is due or it has diverged.

        Args:
            progress: share of the run done.
            reduce: the mean over the ranks, where a run has several; all of them come here at the same update.

        Returns:
            What to do and to :meth:`apply`, or ``None``.
        """
        diverged = self.phase == "warm-up" and self._watch.diverged()
        if not diverged and not self.due(progress):
            return None
        reached = self._lrs[-1] if self._lrs else self.settings.climb(progress)
        losses = self._pending(reduce)
        self.history.extend(self._lrs, losses)
        self.last_read = list(zip(self._lrs, losses.tolist(), strict=True))
        self._lrs, self._losses = [], []
        blocks = self.history.blocks()
        test = look(blocks, fallback_lr=self.settings.min_lr)
        facts: dict[str, Any] = {
            "progress": progress,
            "updates": self.history.observed,
            "reached_lr": reached,
            "probability": test.probability,
            "limit": limit_of(blocks),
            "picture": picture(blocks, test.posterior),
        }
        return self._of_divergence(test, facts) if diverged else self._of_test(test, facts)

    def apply(self, decision: Decision) -> None:
        """Go on as decided."""
        self._positive = decision.positive
        self.probability = decision.probability
        self._watch.limit = decision.limit
        if decision.keep:
            self._kept_lr = decision.reached_lr
        if decision.action in ("switch", "rollback"):
            self.phase, self.reason = "decay", decision.reason
            self.peak_lr, self.switched_at = decision.lr, decision.progress

    # ------------------------------------------------------------------ resuming
    SAVED: ClassVar = keys(
        {
            "phase": one_of("warm-up", "decay"),
            "reason": optional(TEXT),
            "peak_lr": optional(ABOVE_0),
            "switched_at": optional(SHARE),
            "probability": SHARE,
            "positive": COUNT,
            "kept_lr": optional(ABOVE_0),
            "history": LossHistory.SAVED,
            "pending": alike(row(several(ABOVE_0), several(MEASURED)), 0, 1),
            "watch": DivergenceWatch.SAVED,
        }
    )
    """The form of :meth:`state_dict`."""

    def state_dict(self, reduce: Reduce | None = None) -> dict[str, Any]:
        """Plain values from which :meth:`load_state_dict` continues, bit for bit; waits for the device.

        Args:
            reduce: the mean over the ranks, where a run has several: what was not tested yet is saved as their mean.
        """
        return {
            "phase": self.phase,
            "reason": self.reason,
            "peak_lr": self.peak_lr,
            "switched_at": self.switched_at,
            "probability": self.probability,
            "positive": self._positive,
            "kept_lr": self._kept_lr,
            "history": self.history.state_dict(),
            "pending": [list(self._lrs), self._pending(reduce).tolist()],
            "watch": self._watch.state_dict(),
        }

    @staticmethod
    def has_switched(state: Mapping[str, Any]) -> bool:
        """Whether the climb was over when ``state`` was taken."""
        return bool(state["phase"] == "decay")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken."""
        self.phase, self.reason = state["phase"], state["reason"]
        self.peak_lr, self.switched_at = state["peak_lr"], state["switched_at"]
        self.probability = float(state["probability"])
        self._positive = int(state["positive"])
        self._kept_lr = state["kept_lr"]
        self.history.load_state_dict(state["history"])
        self._lrs, self._losses = list(state["pending"][0]), list(state["pending"][1])
        self._watch.load_state_dict(state["watch"])

    # ------------------------------------------------------------------ inside
    def _pending(self, reduce: Reduce | None) -> Tensor:
        """The losses since the last test, on the host."""
        tensors = [loss for loss in self._losses if isinstance(loss, Tensor)]
        if not tensors or len({tensor.dtype for tensor in tensors}) > 1:
            losses = torch.tensor([float(loss) for loss in self._losses], dtype=torch.float64)
        else:  # after a resume the first ones are numbers: float32 holds what float32 was
            like = tensors[0]
            first = torch.tensor(self._losses[: len(self._losses) - len(tensors)], dtype=like.dtype, device=like.device)
            losses = torch.cat([first, torch.stack(tensors)])
        if reduce is not None:
            losses = reduce(losses)
        return losses.to("cpu", torch.float64)

    def _of_test(self, test: SwitchTest, facts: dict[str, Any]) -> Decision:
        settings = self.settings
        positive = self._positive + 1 if test.probability > settings.confidence else 0
        informative = max(test.probability, test.fell) > settings.confidence
        ends = facts["progress"] >= settings.max_warmup - SNAP
        # a loss that shows nothing has its lowest point anywhere, also at max_lr: the middle of what was tried, then
        best = math.sqrt(settings.min_lr * facts["reached_lr"]) if ends and not informative else test.best_lr
        chosen = max(settings.min_lr, settings.lr_scale * best)
        known = {**facts, "lr": chosen, "positive": positive, "informative": informative}
        if positive >= settings.patience:
            return Decision("switch", self._how_to_switch(test), keep=False, **known)
        if ends:
            message = f"the loss had not risen by max_lr={settings.max_lr:g}; the decay begins at {chosen:.3g}"
            if not informative:
                message = (
                    f"the loss did not depend on the learning rate, from {settings.min_lr:g} to "
                    f"{facts['reached_lr']:.3g}; the decay begins half-way on the log scale, at {chosen:.3g}: a guess"
                )
            how = self._how_to_switch(test)
            return Decision("timeout", how, keep=False, message=f"AdaptiveWarmup: {message}", **known)
        return Decision("test", "continue", keep=self._is_best(test), **known)

    def _of_divergence(self, test: SwitchTest, facts: dict[str, Any]) -> Decision:
        settings = self.settings
        non_finite = self._watch.non_finite
        chosen = max(settings.min_lr, settings.lr_scale * safe_lr(test, facts["reached_lr"], settings.min_lr))
        action: Action = settings.on_divergence
        message = (
            f"AdaptiveWarmup: the loss {'is not finite' if non_finite else 'exploded'} at a learning rate of "
            f"{facts['reached_lr']:.3g} (min_lr={settings.min_lr:g}, max_lr={settings.max_lr:g}) after "
            f"{facts['updates']} updates"
        )
        if self.history.observed == self.history.non_finite:
            action, message = "raise", f"{message}: no loss was finite, so the learning rate is not the cause"
        elif action == "raise":
            message += f"; set max_lr below {chosen:.3g}, or on_divergence to 'switch' or 'rollback'"
        else:
            message += f"; the decay begins at {chosen:.3g}"
        return Decision(
            "divergence", action, lr=chosen, positive=0, keep=False, non_finite=non_finite, message=message, **facts
        )

    def _how_to_switch(self, test: SwitchTest) -> Action:
        # on the way to the proof that the loss rises the weights have suffered from it
        return "rollback" if self.settings.restore_best and not self._is_best(test) else "switch"

    def _is_best(self, test: SwitchTest) -> bool:
        """Whether the smoothed loss is lower now than where the state was kept last."""
        if test.posterior is None:
            return False
        now = float(test.posterior.mean[-1])
        return self._kept_lr is None or now < test.posterior.mean_at(math.log(self._kept_lr))
