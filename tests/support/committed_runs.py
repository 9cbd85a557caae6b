"""Statistics over the committed results, without the benchmarks' own code: what the documents are held against.

A result is a JSON file under ``benchmarks/results``; runs of one setting differ in the seed. Accuracies are in %,
intervals are Student's, differences are paired by seed.
"""

from __future__ import annotations

import json
import math
import random
import re
import statistics
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from scipy.stats import rankdata
from scipy.stats import t as student  # type: ignore[import-untyped]

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
Seeds = dict[int, dict[str, Any]]
Numbers = tuple[float, ...]


# ---------------------------------------------------------------------- reading
@cache
def records(folder: str) -> list[dict[str, Any]]:
    """Every record of a folder that has a configuration."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((RESULTS / folder).glob("*.json"))]
    return [record for record in found if record.get("config")]


@cache
def document(name: str) -> Any:
    """One JSON file."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def where(folder: str, **config: Any) -> list[dict[str, Any]]:
    """The records whose configuration has these values."""
    chosen = [r for r in records(folder) if all(r["config"].get(name) == value for name, value in config.items())]
    assert chosen, f"no record of {folder} has {config}"
    return chosen


def by_seed(folder: str, seeds: Iterable[int] | None = None, **config: Any) -> Seeds:
    """The records of one setting by seed."""
    kept = None if seeds is None else set(seeds)
    chosen: Seeds = {}
    for record in where(folder, **config):
        seed = record["config"]["seed"]
        if kept is None or seed in kept:
            assert seed not in chosen, f"{folder}: two records of seed {seed} have {config}"
            chosen[seed] = record
    assert chosen, f"no record of {folder} has {config} and a seed in {kept}"
    return chosen


@cache
def rows_of(table: str, heading: str = "") -> list[list[str]]:
    """The cells of a Markdown table's rows, for what has no JSON; of the table below a heading."""
    text = (
        (RESULTS / table).read_text(encoding="utf-8").partition(heading)[2]
        if heading
        else (RESULTS / table).read_text()
    )
    lines = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert lines, table
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines[0].splitlines()[2:]]


# ---------------------------------------------------------------------- statistics
def mean_and_half_width(values: Iterable[float], confidence: float = 0.95) -> Numbers:
    """A mean with half its interval by Student's distribution."""
    values = list(values)
    quantile = student.ppf((1 + confidence) / 2, len(values) - 1)
    return statistics.fmean(values), float(quantile) * statistics.stdev(values) / math.sqrt(len(values))


def mean_and_error(values: Iterable[float]) -> Numbers:
    """A mean with its standard error."""
    values = list(values)
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def paired(ours: Seeds, theirs: Seeds, value: Callable[[Any], float], confidence: float = 0.95) -> Numbers:
    """The mean difference over the seeds that both have, with half its interval."""
    both = sorted(ours.keys() & theirs.keys())
    return mean_and_half_width([value(ours[seed]) - value(theirs[seed]) for seed in both], confidence)


def median_and_bootstrap(ratios: list[float]) -> Numbers:
    """A median with the 95 % interval of 2000 resamples, drawn as the benchmark draws them."""
    generator = random.Random(0)
    medians = sorted(statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(2000))
    return statistics.median(ratios), medians[50], medians[-51]


def percent(record: Mapping[str, Any]) -> float:
    return 100 * float(record["test_accuracy"])


def loses(difference: Numbers) -> Numbers:
    """A difference as what is lost: "loses 0.17 ± 0.05" for -0.17 ± 0.05."""
    return (-difference[0], *difference[1:])


def three(interval: Mapping[str, float]) -> Numbers:
    """``median [low, high]``."""
    return interval["median"], interval["low"], interval["high"]


# ---------------------------------------------------------------------- headline: an unknown learning rate
def headline(task: str, arm: str) -> Seeds:
    return by_seed("headline", (1, 2, 3), model=task, arm=arm)


def quality(record: Mapping[str, Any]) -> float:
    return record["test_bits"] if record["config"]["model"] == "byte LM" else percent(record)


def headline_ci(task: str, arm: str) -> Numbers:
    return mean_and_half_width(map(quality, headline(task, arm).values()))


def headline_difference(task: str, ours: str, theirs: str) -> Numbers:
    return paired(headline(task, ours), headline(task, theirs), quality)


# ---------------------------------------------------------------------- a learning rate that is searched for
SEARCHED = "learning_rate_search"


def searched(task: str, optimizer: str, budget: Any = "auto") -> Seeds:
    return by_seed(SEARCHED, None, task=task, optimizer=optimizer, budget=budget)


def searched_long(task: str, optimizer: str, tuned: bool = False) -> Seeds:
    """Runs of 1 024 updates, by their seeds above 0: searches, or those at the tuned rate, which has several."""
    of_pair = where(SEARCHED, task=task, optimizer=optimizer)
    every = [r for r in of_pair if "lr" in r["config"] and "budget" not in r["config"] and r["config"]["seed"] > 0]
    return {r["config"]["seed"]: r for r in every if (r["config"]["lr"] is not None) is tuned}


def behind_tuned(task: str, optimizer: str, budget: Any = "auto") -> Numbers:
    """How far searches are behind the tuned rate, paired by seed, with the interval: points, or bits."""
    return paired(_at_tuned_rate(task, optimizer), searched(task, optimizer, budget), _test)


def behind_tuned_long(task: str, optimizer: str) -> Numbers:
    """The same at 1 024 updates."""
    return paired(searched_long(task, optimizer, tuned=True), searched_long(task, optimizer), _test)


def over_pairs(pairs: Iterable[tuple[str, str]], behind: Callable[[str, str], Numbers] = behind_tuned) -> Numbers:
    """Mean distance over pairs of task and optimizer with its interval, and the worst, in points; 0.1 bits are one."""
    found = [behind(*pair)[0] * (10 if pair[0] == "byte LM" else 1) for pair in pairs]
    return *mean_and_half_width(found), max(found)


def arm_behind(task: str, arm: str) -> Numbers:
    """How far another way is behind the tuned AdamW, paired by seed."""
    return paired(_at_tuned_rate(task, "AdamW"), by_seed(SEARCHED, None, task=task, arm=arm), _test)


WAYS = (
    "AdaptiveWarmup", "LearningRateFinder", "LearningRateFinder, per step", "Prodigy", "DAdaptAdam",
    "ScheduleFreeAdamW", "finder, fastai's valley", "DoG", "successive halving",
)  # fmt: skip


def mean_ranks(tasks: Iterable[str], *shown: str) -> list[float]:
    """Mean ranks with AdamW of the search, the tuned rate and every other way, 1 for the best; of those shown."""
    ranks: dict[str, list[float]] = {}
    for task in tasks:
        behind = {way: arm_behind(task, way)[0] for way in WAYS}
        behind |= {"search": behind_tuned(task, "AdamW")[0], "tuned": 0.0}
        for way, rank in zip(behind, rankdata(list(behind.values())), strict=True):
            ranks.setdefault(way, []).append(float(rank))
    return [statistics.fmean(ranks[way]) for way in shown]


def added_to_search(task: str, arm: str) -> Numbers:
    """How far a search with something added is ahead of the search alone, paired by seed, with AdamW."""
    return paired(by_seed(SEARCHED, None, task=task, arm=arm), searched(task, "AdamW"), _test)


def added_price(tasks: Iterable[str], arm: str) -> float:
    """The mean price of it, in runs."""
    return statistics.fmean(r["price"] for task in tasks for r in by_seed(SEARCHED, None, task=task, arm=arm).values())


def _at_tuned_rate(task: str, optimizer: str) -> Seeds:
    """The runs of 256 updates of a task at its tuned rate, which alone has seeds above 0."""
    of_pair = where(SEARCHED, task=task, optimizer=optimizer, budget=None)
    return {
        r["config"]["seed"]: r
        for r in of_pair
        if r["config"].get("lr") and "budget" in r["config"] and r["config"]["seed"] > 0
    }


def _test(record: Mapping[str, Any]) -> float:
    return float(record["test"])


def searched_price(pairs: Iterable[tuple[str, str]], budget: Any = "auto") -> float:
    """The most that a race has cost, in runs."""
    return max(r["price"] / r["updates"] for pair in pairs for r in searched(*pair, budget).values())


def searched_price_long(pairs: Iterable[tuple[str, str]]) -> float:
    """The same at 1 024 updates."""
    return max(r["price"] / r["updates"] for pair in pairs for r in searched_long(*pair).values())


NOTHING_LEARNED = "learning_rate_search_nothing_learned"


def gained_by_harm(problem: str, optimizer: str, afterwards: bool) -> Numbers:
    """How far races that go on by harm are ahead of those that go on by the score alone; seeds after 20, or to 20."""
    harm, score = (
        {
            seed: run
            for seed, run in by_seed(NOTHING_LEARNED, None, problem=problem, optimizer=optimizer, way=way).items()
            if (seed > 20) is afterwards
        }
        for way in ("by harm", "by score alone")
    )
    return paired(harm, score, _test)


def worst_by_harm(problem: str, optimizer: str) -> tuple[float, float]:
    """The worst of all seeds by harm, and by the score alone."""
    ways = ("by harm", "by score alone")
    every = (by_seed(NOTHING_LEARNED, None, problem=problem, optimizer=optimizer, way=way) for way in ways)
    harm, score = (min(map(_test, seeds.values())) for seeds in every)
    return harm, score


def choices() -> Any:
    """The record of `learning_rate_search_choice`."""
    return document(f"{SEARCHED}/choice.json")


def reading(name: str, task: str) -> Numbers:
    """How far another reading of the race is ahead on a task with AdamW, with the interval."""
    mean, half, *_ = document("learning_rate_search_readings/readings.json")["figures"][name][f"{task}, AdamW"]
    return mean, half


def halved(pair: str) -> Numbers:
    """What halving the choice on a plateau gains a problem, with the interval."""
    mean, half = document("learning_rate_search_readings/plateaus.json")["figures"][pair]["ahead"]["halved"]
    return mean, half


def worst_of_halving() -> float:
    """The most that it costs one of the ten pairs beside GRU and LSTM on digits, with AdamW."""
    others = document("learning_rate_search_readings/plateaus.json")["figures"].keys() - {
        "GRU, AdamW",
        "rows, LSTM, AdamW",
    }
    assert len(others) == 10
    return -min(halved(pair)[0] for pair in others)


def spread_of_choice(task: str, optimizer: str) -> float:
    """The highest rate that 20 searches chose, over the lowest."""
    rates = [rate for rate, _ in choices()["seeds"][f"{task}, {optimizer}"]]
    return max(rates) / min(rates)


def poisoned_choices() -> Numbers:
    """By how many percent the GRU's choice moves in the median with shuffled labels in a batch, and how many times at
    most."""
    clean, poisoned = (choices()[part]["GRU, AdamW"] for part in ("seeds", "poisoned"))
    moved = [max(a / b, b / a) for (a, _), (b, _) in zip(clean, poisoned, strict=True)]
    return 100 * (statistics.median(moved) - 1), max(moved)


def scaled_choices(how: str) -> Numbers:
    """By how many percent the choice moves where the loss is scaled, and a score: at rates from 0.3 to 0.4, and at
    lower ones."""
    runs = choices()["scaled"][how]
    choice = max(abs(rate / run["rates"][0] - 1) for run in runs for rate in run["rates"])
    moved: dict[bool, float] = {True: 0.0, False: 0.0}
    for run in runs:
        first, *others = run["scores"]
        for rate, score in first.items():
            if float(rate) < 0.4:
                away = max(abs(other[rate] / score - 1) for other in others)
                moved[float(rate) > 0.3] = max(away, moved[float(rate) > 0.3])
    return 100 * choice, 100 * moved[True], moved[False]


def time_of_race() -> list[float]:
    """By how many percent a race takes longer than its updates' share of the run: medians, by pair."""
    return [
        100 * (statistics.median(race / run / (price / 256) for race, run, price in taken) - 1)
        for taken in choices()["times"].values()
    ]


def prices_of_choices() -> list[float]:
    """The updates that races took."""
    return [price for found in choices()["seeds"].values() for _, price in found]


def updates_of_a_sweep() -> float:
    """Of Lightning's finder."""
    runs = headline("CNN", "LearningRateFinder, per step").values()
    (number,) = {run["finder_samples"] / run["config"]["batch_size"] for run in runs}
    return float(number)


def why(task: str, setting: str, epochs: int = 8) -> float:
    (record,) = where("headline_why", model=task, setting=setting, epochs=epochs)
    return 100 * float(record["val_accuracy"])


# ---------------------------------------------------------------------- adaptive warm-up
def _warmups(model: str, optimizer: str, batch: int, restore_best: bool) -> Seeds:
    found = where("adaptive_warmup", model=model, optimizer=optimizer, batch_size=batch, restore_best=restore_best)
    return {r["config"]["seed"]: r for r in found if r["reason"] is not None and r["config"]["seed"] in (1, 2, 3)}


def _tuned(model: str, optimizer: str, batch: int) -> Seeds:
    found = where("adaptive_warmup", model=model, optimizer=optimizer, batch_size=batch)
    tried = [r for r in found if r["reason"] is None]
    best = max((r for r in tried if r["config"]["seed"] == 0), key=lambda r: r["val_accuracy"])["config"]["lr"]
    return {r["config"]["seed"]: r for r in tried if r["config"]["lr"] == best and r["config"]["seed"] in (1, 2, 3)}


def against_tuned(model: str, batch: int, optimizer: str = "AdamW", restore_best: bool = True) -> Numbers:
    """Ours less the best of six rates, 90 %."""
    ours = _warmups(model, optimizer, batch, restore_best)
    return paired(ours, _tuned(model, optimizer, batch), percent, 0.9)


def worth_of_restoring(model: str, batch: int) -> Numbers:
    """With ``restore_best`` less without, 95 %."""
    return paired(_warmups(model, "AdamW", batch, True), _warmups(model, "AdamW", batch, False), percent)


WARMUP_ROWS = [
    *[("CNN", "AdamW", batch) for batch in (128, 512, 2048, 8192)],
    *[("ViT", "AdamW", batch) for batch in (128, 512, 2048)],
    ("CNN", "AdamP", 512),
    ("CNN", "LAMB", 512),
]


def warmup_switches() -> list[float]:
    """In % of the run, over all rows."""
    return [100 * r["switched_at"] for row in WARMUP_ROWS for r in _warmups(*row, True).values()]


def warmup_updates(batch: int) -> float:
    return updates(_warmups("CNN", "AdamW", batch, True))


def losses_elsewhere() -> list[float]:
    """Mean losses in the rows that are neither as good nor the one of 32 updates."""
    rows = [row for row in WARMUP_ROWS if row[2] != 8192 and row[::2] not in (("ViT", 128), ("ViT", 512))]
    return [-against_tuned(model, batch, optimizer)[0] for model, optimizer, batch in rows]


def as_good_minus(margin: float) -> int:
    """Rows whose whole interval lies above minus the margin."""
    intervals = [against_tuned(model, batch, optimizer) for model, optimizer, batch in WARMUP_ROWS]
    return sum(mean - half > -margin for mean, half in intervals)


# ---------------------------------------------------------------------- batch-size ramp
def ramp(mode: str, optimizer: str = "momentum", **more: Any) -> Seeds:
    lr = {"momentum": 0.2, "nesterov": 0.4, "adam": 0.004, "sgd": 2.0}[optimizer]
    config = {"lr": lr, "momentum": 0.0 if optimizer == "sgd" else 0.9, "batch_size": 128, **more}
    return by_seed("batch_size_ramp", optimizer=optimizer, mode=mode, **config)


def ramp_difference(mode: str, optimizer: str = "momentum", **more: Any) -> Numbers:
    return paired(ramp(mode, optimizer, **more), ramp("decay", optimizer), percent, 0.9)


def updates(runs: Seeds) -> float:
    (number,) = {record["updates"] for record in runs.values()}
    return float(number)


def cpu_mean(runs: Seeds) -> float:
    return statistics.fmean(record["cpu_seconds"] for record in runs.values())


def text_ramp(schedule: str) -> Seeds:
    return by_seed("batch_size_ramp_text", schedule=schedule, lr=0.008)


def text_difference(schedule: str) -> Numbers:
    return paired(text_ramp(schedule), text_ramp("decay"), lambda r: r["epochs"][-1]["val_bits"], 0.9)


def means_of_other_optimizers() -> list[float]:
    return [ramp_difference(mode, o)[0] for mode in ("hybrid", "increase") for o in ("nesterov", "adam", "sgd")]


# ---------------------------------------------------------------------- linear scaling, layer-wise rates, large batches
def scaling(model: str, batch: int, rule: str, warmup: float) -> Numbers:
    """The difference to batch 128, 95 %; a run that diverged counts as guessing."""
    ours = by_seed("linear_scaling", model=model, batch_size=batch, lr=0.05, rule=rule, warmup_epochs=warmup)
    reference = by_seed("linear_scaling", model=model, batch_size=128, lr=0.05, rule="none")
    return paired(ours, reference, lambda r: 10.0 if r["diverged"] else percent(r))


def layerwise(decay: float = 1.0, schedule: str = "constant", unfreezing: bool = False) -> Seeds:
    found = where("layerwise", decay=decay, schedule=schedule, unfreezing=unfreezing)
    return {r["config"]["seed"]: r for r in found if "test_acc" in r}


def layerwise_difference(*setting: Any) -> Numbers:
    return paired(layerwise(*setting), layerwise(), lambda r: 100 * r["test_acc"])


def last_train_loss(*setting: Any) -> float:
    return statistics.fmean(r["train_losses"][-1] for r in layerwise(*setting).values())


LAYERWISE_SETTINGS = [
    *[(decay, "constant", False) for decay in (0.8, 0.9, 0.65)],
    *[(decay, "triangle", unfreezing) for decay, unfreezing in ((1.0, False), (0.8, False), (0.8, True))],
]


def large_batch(optimizer: str, batch: int, bias_decay: bool = True) -> Seeds:
    """The runs at the tuned rate: of the grid (1 and 3 times powers of ten), the best by validation with seed 0."""
    found = where("large_batch", optimizer=optimizer, batch_size=batch)
    tuned = max(
        (r for r in found if r["config"]["seed"] == 0 and r["config"]["bias_decay"] and _on_the_grid(r)),
        key=lambda r: r["val_accuracy"],
    )["config"]["lr"]
    return by_seed("large_batch", optimizer=optimizer, batch_size=batch, bias_decay=bias_decay, lr=tuned)


def _on_the_grid(record: Mapping[str, Any]) -> bool:
    return f"{record['config']['lr']:e}"[0:4] in ("1.00", "3.00")


def large_batch_mean(optimizer: str, batch: int) -> Numbers:
    return mean_and_error(map(percent, large_batch(optimizer, batch).values()))


def no_bias_decay(optimizer: str, batch: int) -> Numbers:
    return paired(large_batch(optimizer, batch, False), large_batch(optimizer, batch), percent)


# ---------------------------------------------------------------------- hypergradients
RATES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def hyper(model: str, optimizer: str, arm: str, lr: float) -> list[dict[str, Any]]:
    return where("hypergradient", model=model, optimizer=optimizer, arm=arm, lr=lr)


def hyper_ci(lr: float, arm: str) -> Numbers:
    """Logistic regression with SGD."""
    return mean_and_half_width(map(percent, hyper("logistic", "sgd", arm, lr)))


def hyper_means(model: str, optimizer: str, arm: str, rates: Iterable[float] = RATES) -> list[float]:
    """The mean accuracy from each initial rate."""
    made = {r["config"]["lr"] for r in where("hypergradient", model=model, optimizer=optimizer, arm=arm)}
    return [statistics.fmean(map(percent, hyper(model, optimizer, arm, lr))) for lr in rates if lr in made]


def ends(values: list[float]) -> Numbers:
    """Least and largest."""
    return min(values), max(values)


def spread(values: list[float]) -> float:
    return max(values) - min(values)


def updates_to(loss: float, runs: Iterable[dict[str, Any]]) -> float:
    """Mean of the updates to a validation loss; its length for a run that does not reach it."""
    first = [next((u for u, value in r["curve"] if value <= loss), r["config"]["updates"]) for r in runs]
    return statistics.fmean(first)


def worst_over_best(loss: float, arm: str, rates: Iterable[float]) -> float:
    """Logistic regression with SGD: updates from the worst initial rate, over those of the best fixed rate."""
    best = min(updates_to(loss, hyper("logistic", "sgd", "fixed", lr)) for lr in (*RATES, 0.3, 1.0))
    return max(updates_to(loss, hyper("logistic", "sgd", arm, lr)) for lr in rates) / best


# ---------------------------------------------------------------------- speed, memory
MACHINES = {"Intel": "Intel_R_Xeon_R_Processor_2.80GHz_1_threads.json", "AMD": "AMD_EPYC_1_threads.json"}


def over_peers(machine: str, parameters: str, optimizer: str, clock: str = "cpu") -> Numbers:
    """How much longer the better of two peers takes."""
    result = document(f"optimizers/{MACHINES[machine]}")["results"][parameters][optimizer]
    return three(result["better peer over ours"][clock])


def over_fused(machine: str, parameters: str, optimizer: str) -> float:
    """How much longer ours takes than torch's fused optimizer, CPU time."""
    result = document(f"optimizers/{MACHINES[machine]}")["results"][parameters][optimizer]
    return 1 / float(result["torch fused over ours"]["cpu"]["median"])


def step_time(net: str, policy: str = "sqrt") -> Numbers:
    (row,) = [
        r
        for r in document("activations/checkpointing.json")["time"]["rows"]
        if (r["net"], r["policy"]) == (net, policy)
    ]
    return three(row)


def held(net: str, policy: str = "sqrt") -> float:
    """Plain bytes over the measured peak, fp32."""
    memory = document("activations/checkpointing.json")["memory"]
    (row,) = [r for r in memory if (r["net"], r["policy"], r["precision"]) == (net, policy, "fp32")]
    return float(row["plain"] / row["measured"])


def too_low() -> list[int]:
    """Bytes by which predicted peaks are below the measured ones."""
    return [row["measured"] - row["predicted"] for row in document("activations/checkpointing.json")["memory"]]


def too_low_percent() -> float:
    """The largest of them, in % of the measured peak."""
    memory = document("activations/checkpointing.json")["memory"]
    return max(100 * (row["measured"] - row["predicted"]) / row["measured"] for row in memory)


def overhead(logger: str, callbacks: str, clock: str) -> Numbers:
    return three(document("overhead/CPU_x86_64.json")[logger][callbacks][clock])


def small_step_overhead(callbacks: str) -> Numbers:
    """Of the bare update, in the cell for which there is a target."""
    return three(document("overhead_table/cells/target.json")["rows"][callbacks]["ratio"])


def _cells(long: bool) -> list[dict[str, Any]]:
    """Of the table of overhead, those whose bare update takes more than 10 ms, or less."""
    return [cell for cell in records("overhead_table/cells") if (cell["bare_ms"] > 10) == long]


def lengths_of_updates(long: bool) -> Numbers:
    """Shortest and longest bare update of those cells, in ms."""
    lengths = [cell["bare_ms"] for cell in _cells(long)]
    return [min(lengths), max(lengths)]


def worst_overhead(callbacks: str, long: bool) -> Numbers:
    """Of the bare update, in the cell where it is most."""
    ratios = [cell["rows"][callbacks]["ratio"] for cell in _cells(long) if callbacks in cell["rows"]]
    return three(max(ratios, key=lambda ratio: ratio["median"]))


def added_times_less() -> list[float]:
    ratios = [r["tensor by tensor over ours"] for r in document("hypergradient_cost.json")["rows"]]
    return [r["median"] for r in ratios if r is not None]


def compression(model: str, arm: str) -> Seeds:
    return by_seed("compression", model=model, arm=arm)


def compression_difference(model: str, arm: str) -> Numbers:
    return paired(compression(model, arm), compression(model, "fp32"), _accuracy, 0.9)


def compression_accuracy(model: str) -> Numbers:
    return mean_and_half_width(map(_accuracy, compression(model, "fp32").values()), 0.9)


def compression_ratio(model: str, arm: str) -> float:
    return statistics.fmean(r["result"]["ratio"] for r in compression(model, arm).values())


def packing_speed(how: str, bits: str) -> float:
    """GB of fp32 per second of CPU time, packed and unpacked again."""
    rows = document("compression/speed.json")["result"]["rows"]
    (found,) = [float(row["both GB/s"]) for row in rows if (row["how"], row["bits"]) == (how, bits)]
    return found


NETWORK_ARMS = ("8", "4", "auto-4", "2")


def compressed_network(name: str) -> Numbers:
    """At 8, 4, auto-4 and 2 bits: times less saved, cosine of one step's gradient in the mean, time of a step."""
    arms = document(f"compression_networks/{name}.json")["result"]["arms"]
    chosen = [arms[arm] for arm in NETWORK_ARMS]
    return (
        *(arm["raw_bytes"] / arm["held_bytes"] for arm in chosen),
        *(statistics.fmean(arm["cosines"]) for arm in chosen),
        *(statistics.median(arm["ratios"]) for arm in chosen),
    )


def compressed_networks(position: int) -> list[float]:
    """The least and the largest of one of these numbers over all networks."""
    names = sorted(path.stem for path in (RESULTS / "compression_networks").glob("*.json"))
    return ends([compressed_network(name)[position] for name in names])


def mild_compression() -> list[Numbers]:
    """The differences at 8, 4 and an average of 4 bits."""
    return [compression_difference(model, arm) for model in ("resnet", "vit") for arm in ("8", "4", "auto-4")]


def all_slower() -> list[float]:
    """Times the CPU time of training in full precision, by network and bits."""
    return [slower(model, arm) for model in ("resnet", "vit") for arm in ("8", "4", "auto-4", "2")]


def slower(model: str, arm: str) -> float:
    times = [statistics.fmean(r["result"]["seconds"] for r in compression(model, a).values()) for a in (arm, "fp32")]
    return times[0] / times[1]


def _accuracy(record: Mapping[str, Any]) -> float:
    return 100 * float(record["result"]["accuracy"])


def saved_times_less(network: str, column: int) -> float:
    """From the table of bytes (no JSON): at 4 bits, "all saved" of fp32 (4) or bf16 (8), the peak (11)."""
    (row,) = [row for row in rows_of("compression_memory.md") if row[0].startswith(f"{network},") and row[1] == "4"]
    number = re.search(r"([\d.]+)x", row[column])
    assert number
    return float(number[1])


def share_of_raw_logits() -> float:
    """Of what the GPT over bytes keeps at 4 bits, in %."""
    (row,) = [
        row
        for row in rows_of("compression_memory.md", "the largest parts:")
        if row[0].startswith("GPT, ") and row[1:3] == ["cross_entropy", "kept"]
    ]
    return float(row[-1].rstrip("%"))


def zero_memory_errors(stages: Iterable[int] = (0, 1, 2, 3)) -> list[float]:
    """Predicted over measured bytes at the end of the backward, less 1, in %."""
    cases = [c for c in document("zero_memory.json")["cases"] if c["config"]["stage"] in stages]
    return [100 * (c["predicted"]["after backward"] / c["measured"]["after backward"] - 1) for c in cases]


def zero_peak_errors(stages: Iterable[int]) -> list[float]:
    """Predicted peak over the largest of the three measured moments, less 1, in %."""
    cases = [c for c in document("zero_memory.json")["cases"] if c["config"]["stage"] in stages]
    return [100 * (c["predicted"]["peak"] / max(c["measured"].values()) - 1) for c in cases]


def zero_step(stage: int, compared: str = "ZeROStrategy against Lightning's") -> Numbers:
    """The median over pairs of blocks of the ratio of CPU times, with its interval by order statistics."""
    found = []
    for one in document("zero_speed.json")["rounds"]:
        for row in one["rows"]:
            if (row["stage"], row["compared"]) == (stage, compared):
                found += [ours / theirs for ours, theirs in zip(*row["cpu"], strict=True)]
    return median_and_bootstrap(found)


# ---------------------------------------------------------------------- kills, pairs
def kills(only: str = "") -> list[dict[str, Any]]:
    return [kill for record in records("faults") if only in record["config"]["name"] for kill in record["kills"]]


def compared_kills(only: str = "") -> int:
    return sum(kill["values"] + kill.get("restored_values", 0) > 0 for kill in kills(only))


def whole_ends(only: str = "") -> int:
    found = [record for record in records("faults") if only in record["config"]["name"]]
    return sum(not (record["failed"] or record["final"] or record["journals"]) for record in found)


def command_kills(world: int) -> list[dict[str, Any]]:
    return [kill for record in where("faults_everything", world=world) for kill in record["kills"]]


@cache
def pairs() -> dict[str, int]:
    """The table of what stands beside what, counted."""
    cells = [cell for row in rows_of("composition.md", "31. ModelParallelStrategy") for cell in row[1:]]
    return {mark: cells.count(mark) for mark in ("✓", "-", "(✓)")}


# ---------------------------------------------------------------------- what a result was made with
def made_with_local_changes(folder: str) -> tuple[int, int]:
    """Of the files of a folder, those whose code was not the commit's; and all."""
    files = [path.read_text(encoding="utf-8") for path in (RESULTS / folder).glob("*.json")]
    return sum("with local changes" in text for text in files), len(files)


# ---------------------------------------------------------------------- the critical batch
def critical_batch(task: str, arm: str, scale: float) -> list[float]:
    """Updates and result of an arm, of the seed that every arm has."""
    made = where("critical_batch", task=task, arm=arm, seed=2)
    return [
        statistics.fmean(record["updates"] for record in made),
        scale * statistics.fmean(record["value"] for record in made),
    ]


def kills_in_branches() -> list[float]:
    """How many runs were killed inside a branch, and how many of them went on right."""
    killed = [kill for kill in document("branch_kills.json")["kills"] if kill["killed"]]
    return [len(killed), sum(kill["right"] for kill in killed)]
