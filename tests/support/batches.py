"""Cases that share process groups: those that are run every time, and the slow ones once one of them is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.processes import Cases, run_in_processes


class Batches:
    """What each rank's cases returned, or their errors as text; ``batches[name]`` is a list over ranks.

    Args:
        folder: where the results are written; of the slow ones in a folder below it.
        soon: run at the first question.
        slow: run at the first question for one of them, after the others, of whose files they may make use.
        world: number of ranks.
    """

    def __init__(self, folder: Path, soon: Cases, slow: Cases, world: int = 2) -> None:
        known = {name for name, _ in soon}
        self._cases = (list(soon), [case for case in slow if case[0] not in known])
        self._folder = folder
        self._world = world
        self._ranks: list[list[dict[str, Any]]] = []

    def __getitem__(self, name: str) -> list[Any]:
        for index, cases in enumerate(self._cases):
            if len(self._ranks) == index:
                folder = self._folder / "slow" if index else self._folder
                self._ranks.append(run_in_processes(cases, folder, self._world))
            if any(name == known for known, _ in cases):
                return [rank[name] for rank in self._ranks[index]]
        raise KeyError(name)
