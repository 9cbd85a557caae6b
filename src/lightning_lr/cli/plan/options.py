"""The options of ``lightning-lr plan``, with the units in which people give them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightning_lr.step_time import Network, StepTime

BYTES = {
    "": 1,
    "B": 1,
    "KB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "TB": 1e12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
SECONDS = {"": 1, "S": 1, "MS": 1e-3, "US": 1e-6, "NS": 1e-9}
_NUMBER = r"\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?"


@dataclass(frozen=True)
class PlanOptions:
    """The options of the command line in addition to the configuration.

    Args:
        config: the configuration file, the last where there are several.
        out: where the picture goes; ``None`` for no picture.
        dataset_size: training samples; ``None`` asks the data that is there.
        batch_size: the loader's batch size (samples per device and backward); ``None`` asks the data module.
        world_size: devices; ``None`` reads them from the configuration.
        memory: whether model states by ZeRO stage are shown, whatever the strategy.
        device_memory: bytes of a device, for which strategies are sought that fit.
        parameters: trainable parameters of a model that is larger than the configured one; ``None`` counts that.
        step_time: seconds of a micro-batch; ``"measure"`` measures them here.
        update_time: seconds of an update; ``None`` for what is measured, or 0.
        network: between the devices.
        without_data: what to do where the training data is not here.
    """

    config: str | None = None
    out: Path | None = None
    dataset_size: int | None = None
    batch_size: int | None = None
    world_size: int | None = None
    memory: bool = False
    device_memory: float | None = None
    parameters: int | None = None
    step_time: StepTime | str | None = None
    update_time: float | None = None
    network: Network = field(default_factory=Network)
    without_data: str = "give --dataset-size N"

    @property
    def shows_memory(self) -> bool:
        """Whether the user asks for model states."""
        return self.memory or self.device_memory is not None or self.parameters is not None


def parse_options(words: Sequence[str]) -> tuple[PlanOptions, list[str]]:
    """The options of ``plan``, and the words that are left for the configuration."""
    parser = argparse.ArgumentParser(
        "lightning-lr plan",
        description="Show learning rate, batch and phases of a run before it is trained. Nothing is downloaded, and "
        "nothing is written but the picture.",
        epilog="Every other option overrides the configuration as in `lightning-lr fit`, for example "
        "--trainer.max_epochs 3 (see `lightning-lr fit --help`).",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-c", "--config", action="append", metavar="C", help="configuration of `fit`; may be repeated")
    add("--out", type=Path, metavar="PNG", help="where the picture goes (any format of matplotlib); a page: .html")
    add("--dataset-size", type=int, metavar="N", help="training samples, where the data is not here yet")
    add("--batch-size", type=int, metavar="B", help="the loader's batch size: samples per device and backward")
    add("--world-size", type=int, metavar="W", help="devices that train together")
    memory = parser.add_argument_group("memory")
    add = memory.add_argument
    add("--memory", action="store_true", help="show model states per rank by ZeRO stage (always shown under ZeRO)")
    add("--device-memory", type=_bytes, metavar="24GB", help="and which strategy fits a device with so much memory")
    add("--parameters", type=_count, metavar="7.5e9", help="the same for a model of so many trainable parameters")
    cost = parser.add_argument_group("time to finish")
    add = cost.add_argument
    add(
        "--micro-batch-time", type=_line, metavar="A+Bn", dest="step_time",
        help="seconds for forward and backward of n samples, as 0.02+0.001n or 20ms+1ms*n; `measure` tries it on this "
        "machine's CPU",
    )  # fmt: skip
    add("--update-time", type=_seconds, metavar="S", help="seconds for an update, as 0.01 or 10ms")
    add("--bandwidth", type=_bytes, metavar="25GB", default=float("inf"), help="that a device sends per second")
    add("--latency", type=_seconds, metavar="20us", default=0.0, help="of each collective")
    given, rest = parser.parse_known_args(words)
    if given.step_time is None and (given.update_time is not None or given.bandwidth != float("inf") or given.latency):
        parser.error(
            "--update-time, --bandwidth and --latency have no effect without --micro-batch-time A+Bn (or measure)"
        )
    configs: list[str] = given.config or []
    rest = [*(word for path in configs for word in ("--config", path)), *rest]
    options = PlanOptions(
        configs[-1] if configs else None, given.out, given.dataset_size, given.batch_size, given.world_size,
        given.memory, given.device_memory, given.parameters, given.step_time, given.update_time,
        Network(given.bandwidth, given.latency),
    )  # fmt: skip
    return options, rest


# ---------------------------------------------------------------------- units
def _quantity(text: str, units: dict[str, float], example: str) -> float:
    match = re.fullmatch(rf"({_NUMBER})\s*([a-z]*)", text.strip(), re.IGNORECASE)
    if match is None or match[2].upper() not in units:
        raise argparse.ArgumentTypeError(f"got {text!r}; give a number with or without a unit, as {example}")
    return float(match[1]) * units[match[2].upper()]


def _bytes(text: str) -> float:
    value = _quantity(text.removesuffix("/s"), BYTES, "24GB or 24GiB")
    if value <= 0:
        raise argparse.ArgumentTypeError(f"got {text!r}; give more than 0")
    return value


def _seconds(text: str) -> float:
    return _quantity(text, SECONDS, "0.02, 20ms or 20us")


def _count(text: str) -> int:
    value = _quantity(text, {"": 1, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}, "7.5e9 or 7.5B")
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; give at least 1")
    return round(value)


def _line(text: str) -> StepTime | str:
    if text == "measure":
        return text
    match = re.fullmatch(
        rf"((?:{_NUMBER})\s*[a-z]*?)\s*\+\s*((?:{_NUMBER})\s*[a-z]*?)\s*\*?\s*n", text.strip(), re.IGNORECASE
    )
    if match is None:
        raise argparse.ArgumentTypeError(f"got {text!r}; give seconds as A+Bn, for example 0.02+0.001n, or measure")
    return StepTime(_seconds(match[1]), _seconds(match[2]))
