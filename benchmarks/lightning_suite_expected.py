"""What the tests of Lightning are meant to see of our callbacks, each with its reason, and refusals in a few words."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Meant:
    """Tests that fail, or facts that differ, because a callback is attached at all.

    Args:
        test: regular expression of the file and the test.
        reason: why that is right.
        arms: regular expression of the arms.
        why: regular expression of what the test said.
    """

    test: str
    reason: str
    arms: str = ".*"
    why: str = ".*"

    def covers(self, test: str, arm: str, why: str) -> bool:
        """Whether this is such a case."""
        return bool(
            re.search(self.test, test) and re.fullmatch(self.arms, arm) and re.search(self.why, why, flags=re.DOTALL)
        )


BY_DESIGN: tuple[Meant, ...] = (
    Meant(
        "test_(resume_callback_state_saved_by_type_stateful|fit_can_fail_during_validation|result_collection_reload|"
        "hpc_restore_attempt|strict_loading)",
        "a ramp goes on with the batch after the last one that was trained on, where Lightning reads the loader from "
        "its beginning again",
        arms="BatchSizeRamp|all and a ramp",
        why="^(checkpoint: weights, )?fit: weights$",
    ),
    Meant(
        "test_restart_from_last_with_val_parity",
        "after a checkpoint of the last batch of an epoch Lightning goes on as if inside it; with a callback of ours "
        "attached the next epoch begins as every other, and its loader draws random numbers",
        why="^fit: random$",
    ),
    Meant(
        "test_stochastic_weight_avg",
        "the arm gives the module a batch norm to act on, and with one StochasticWeightAveraging makes another epoch",
        arms="GhostBatchNorm",
    ),
    Meant(
        "test__training_step__epoch_end__flow_scalar",
        "the test asserts that nothing is logged, and our callbacks log",
        why=r"^AssertionError: assert \d+ == 0\n \+  where \d+ = len\(\{",
    ),
    Meant(
        "test_timer_(stops|resume)_training",
        "the test ends its run by the wall clock, and the number of updates until then is another one in every run",
        why="global_step|^checkpoint: loops|the number of fits",
    ),
)


def in_short(refusal: str) -> str:
    """A refusal without the numbers and names of the one run."""
    return re.sub(r"\d+(\.\d+)?", "N", refusal)[:160]
