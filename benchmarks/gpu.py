"""Everything that a GPU is needed for, in one run of at most 8 minutes: launches, step times, memory, largest sizes.

    python -m benchmarks.gpu [--only steps compression] [--seconds 480] [--toy]

Parts, one JSON file each in ``benchmarks/results/gpu/NAME-OF-THE-GPU/``; what is there is not measured again, so that a
run that was stopped goes on, and a part is not begun when the time is up:

- ``steps``: a ResNet-50 and a GPT of 12 layers in bf16, under each method: time of an update against the bare one in
  turn, kernels launched, peak memory;
- ``optimizers``: LARS and LAMB against timm's, and torch's fused and foreach optimizers;
- ``compression``: bits of the Triton kernel against the CPU's reference, GB/s against a copy, images/s and the largest
  batch of the ResNet-50 plain, checkpointed and compressed;
- ``checkpointing``: the peak of a step against what the plan predicts;
- ``compiled``: the hypergradient's sums of steps that are compiled beside those of eager ones, and in a CUDA graph;
- ``offload``: the largest GPT that ``ZeROStrategy(stage=3, offload)`` trains for two updates on the one GPU.

``--toy``: small networks, on any device, to see that it runs; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import logging
import random
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import optimizers as stepping
from benchmarks._common import RESULTS, ResultStore, environment
from benchmarks.overhead import median_with_interval
from benchmarks.overhead_table import ALONE
from lightning_lr.activations import Checkpointing, CheckpointPolicy
from lightning_lr.activations.compression import ActivationCompressor
from lightning_lr.activations.compression.kernels import Kernels
from lightning_lr.hypergradient import AlignmentEstimator

METHODS = (
    "LearningRateSchedule",
    "LearningRateScaling",
    "LayerwiseLRDecay",
    "NormalizedWeightDecay",
    "HypergradientDescent",
    "GradientNoiseScale",
    "schedule + layer-wise + hypergradient + normalized decay",
)


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    image: int
    batch: int
    layers: int
    width: int
    length: int
    rounds: int
    block: int
    numbers: int
    largest: int
    """Batches that are tried at most."""


FULL = Size((256, 512, 1024, 2048), (3, 4, 6, 3), 224, 64, 12, 768, 512, 12, 5, 2**26, 2**14)
TOY = Size((8, 16), (1, 1), 16, 2, 2, 16, 8, 1, 1, 2**12, 4)


def device_now() -> torch.device:
    """The GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait() -> None:
    """Until the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def autocast() -> AbstractContextManager[Any]:
    """bf16 where that is fast."""
    return torch.autocast("cuda", torch.bfloat16) if torch.cuda.is_available() else nullcontext()


# ---------------------------------------------------------------------- networks
class Network(LightningModule):
    """A network with a batch of its own, of transformers' classes with random weights."""

    def __init__(self, kind: str, size: Size, batch: int | None = None) -> None:
        super().__init__()
        import transformers

        count = batch or size.batch
        if kind == "resnet50":
            config = transformers.ResNetConfig(
                embedding_size=size.widths[0] // 4,
                hidden_sizes=list(size.widths),
                depths=list(size.depths),
                num_labels=10,
            )
            self.net: nn.Module = transformers.ResNetForImageClassification(config)
            self.batch = [torch.randn(count, 3, size.image, size.image), torch.randint(10, (count,))]
        else:
            heads = max(1, size.width // 64)
            config = transformers.GPT2Config(
                n_layer=size.layers, n_embd=size.width, n_head=heads, n_positions=size.length, vocab_size=1024
            )
            self.net = transformers.GPT2LMHeadModel(config)
            self.batch = [torch.randint(1024, (max(1, count // 4), size.length))] * 2
        self.kind = kind

    def loss(self, batch: Sequence[Tensor]) -> Tensor:
        """Of a batch."""
        if self.kind == "resnet50":
            return F.cross_entropy(self.net(batch[0]).logits.float(), batch[1])
        logits = self.net(batch[0], use_cache=False).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[1][:, 1:].flatten())

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4, fused=torch.cuda.is_available())


# ---------------------------------------------------------------------- steps under each method
class Measured(Callback):
    """Times blocks of updates, and counts what one launches."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.seconds: list[float] = []
        self.launches = 0
        self._begun = 0.0
        self._profile: profile | None = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        done, block = trainer.global_step - 4, self.size.block
        if done == 0:
            kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            self._profile = profile(activities=kinds, acc_events=True)
            self._profile.start()
        elif self._profile is not None:
            self._profile.stop()
            events = self._profile.events() or []
            on_device = [event for event in events if event.device_type != torch.autograd.DeviceType.CPU]
            self.launches = len(on_device or [event for event in events if event.name.startswith("aten::")])
            self._profile = None
        if done < 1 or (done - 1) % block:
            return
        wait()
        now = time.perf_counter()
        if done > 1:
            self.seconds.append((now - self._begun) / block)
        trainer.should_stop = len(self.seconds) >= self.size.rounds
        self._begun = now


def one_run(kind: str, size: Size, callbacks: list[Callback]) -> dict[str, Any]:
    """Time, launches and peak of a run."""
    torch.manual_seed(0)
    module, measured = Network(kind, size), Measured(size)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(
        max_epochs=10_000,
        accelerator="auto",
        devices=1,
        precision="bf16-mixed" if torch.cuda.is_available() else "32-true",
        callbacks=[*callbacks, measured],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    count = len(module.batch[0])
    data = TensorDataset(*(part.repeat(10, *[1] * (part.dim() - 1)) for part in module.batch))
    trainer.fit(module, DataLoader(data, batch_size=count))
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"seconds": measured.seconds, "launches": measured.launches, "peak_bytes": peak}


def steps(size: Size) -> dict[str, Any]:
    """Every method on both networks, twice, the second time in the other order; the bare run before and after."""
    found: dict[str, Any] = {}
    for kind in ("resnet50", "gpt"):
        order = ["bare", *METHODS, "bare again"]
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in order}
        for names in (order, order[::-1]) if size is FULL else (order,):
            for name in names:
                try:
                    runs[name].append(one_run(kind, size, ALONE[name]() if name in ALONE else []))
                except Exception as error:  # the other methods are worth having
                    if size is not FULL:
                        raise
                    print(f"{kind}, {name}: {error}", flush=True)
        bare = statistics.median(s for run in runs["bare"] for s in run["seconds"])
        found[kind] = {
            "bare_ms": 1e3 * bare,
            "rows": {
                name: {
                    "ratio": median_with_interval([s / bare for run in own for s in run["seconds"]]),
                    "launches": own[0]["launches"] - runs["bare"][0]["launches"],
                    "peak_bytes": own[0]["peak_bytes"] - runs["bare"][0]["peak_bytes"],
                }
                for name, own in runs.items()
                if own
            },
        }
    return found


# ---------------------------------------------------------------------- optimizers
def optimizers(size: Size) -> dict[str, Any]:
    """LARS and LAMB beside others', a step at a time, in turn."""
    device, found = device_now(), {}
    for kind, makes in stepping.contenders().items():
        for name in stepping.LISTS if size is FULL else ():
            times = stepping.measure(makes, name, 4 * size.rounds, device)
            found[f"{kind}, {name}"] = stepping.summary(times)
        if size is not FULL:
            for make in makes.values():
                stepping.one_step(make(stepping.parameters(iter([(3, 4), (3,)]), device)), device)
    return found


# ---------------------------------------------------------------------- compression
def _gb_per_second(work: Callable[[], Any], number_of_bytes: int) -> float:
    work()
    seconds = []
    for _ in range(5):
        wait()
        begin = time.perf_counter()
        work()
        wait()
        seconds.append(time.perf_counter() - begin)
    return number_of_bytes / statistics.median(seconds) / 1e9


def _step_of(arm: str, network: Network, device: torch.device) -> Callable[[], Any]:
    """A training step, plain, checkpointed or compressed."""
    batch = [part.to(device) for part in network.batch]
    if arm == "checkpointed":
        checkpointing = Checkpointing(network.net, CheckpointPolicy(), device)
        around: Callable[[], AbstractContextManager[Any]] = checkpointing.step
    elif arm == "plain":
        around = nullcontext
    else:
        compressor = ActivationCompressor(network.net, bits=int(arm))
        around = lambda: compressor.compressing(batch)  # noqa: E731

    def step() -> None:
        network.zero_grad()
        with autocast(), around():
            loss = network.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]

    return step


def _fits(arm: str, size: Size, batch: int) -> bool:
    try:
        device = device_now()
        step = _step_of(arm, Network("resnet50", size, batch).to(device), device)
        for _ in range(3):
            step()
        wait()
        return True
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def compression(size: Size) -> dict[str, Any]:
    """Bits, speed and what it is for."""
    device, kernels, found = device_now(), Kernels(), {}
    flat = torch.randn(size.numbers, generator=torch.Generator().manual_seed(0))
    reference = Kernels("eager")
    for bits in (2, 4, 8):
        few = flat[: 2**12]
        mine, true = kernels.pack(few.to(device), bits, 256, (1, 2)), reference.pack(few, bits, 256, (1, 2))
        there = flat.to(device)
        packed = kernels.pack(there, bits, 256, (1, 2))
        found[f"{bits} bits"] = {
            "equal": torch.equal(mine.codes.cpu(), true.codes) and torch.equal(mine.meta.cpu(), true.meta),
            "pack_gb_s": _gb_per_second(lambda: kernels.pack(there, bits, 256, (1, 2)), flat.nbytes),  # noqa: B023
            "unpack_gb_s": _gb_per_second(lambda: kernels.unpack(packed), flat.nbytes),  # noqa: B023
            "copy_gb_s": _gb_per_second(there.clone, flat.nbytes),
        }
    for arm in ("plain", "checkpointed", "8", "4"):
        step = _step_of(arm, Network("resnet50", size).to(device), device)
        for _ in range(3):
            step()
        rate = _gb_per_second(step, size.batch) * 1e9
        batch = size.batch if size is FULL else 1
        while batch < size.largest and _fits(arm, size, 2 * batch):
            batch *= 2
        found[arm] = {"images_s": rate, "largest_batch": batch}
    return found


# ---------------------------------------------------------------------- checkpointing
def checkpointing(size: Size) -> dict[str, Any]:
    """The peak of saved activations, as planned and as the allocator saw it."""
    device, found = device_now(), {}
    for kind in ("resnet50", "gpt"):
        network = Network(kind, size).to(device)
        batch = [part.to(device) for part in network.batch]
        peaks = {}
        plan = None
        for arm in ("plain", "checkpointed"):
            applied = Checkpointing(network.net, CheckpointPolicy(), device) if arm == "checkpointed" else None
            for _ in range(3):
                network.zero_grad()
                wait()
                before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
                if torch.cuda.is_available():
                    torch.cuda.reset_peak_memory_stats()
                with autocast(), applied.step() if applied else nullcontext():
                    loss = network.loss(batch)
                loss.backward()  # type: ignore[no-untyped-call]
                peaks[arm] = torch.cuda.max_memory_allocated() - before if torch.cuda.is_available() else 0
            if applied is not None:
                plan = applied.plan
                applied.undo()
        assert plan is not None
        found[kind] = {
            "measured": peaks,
            "planned": {"plain": plan.plain_bytes, "checkpointed": plan.peak_bytes},
            "recomputed": plan.recomputed,
        }
    return found


# ---------------------------------------------------------------------- torch.compile, CUDA graphs
def compiled(size: Size) -> dict[str, Any]:
    """The hypergradient of steps whose network is compiled, and its sums inside a CUDA graph."""
    device, found = device_now(), {}
    for way in ("eager", "compiled"):
        torch.manual_seed(0)
        network = Network("gpt", size).to(device).eval()  # dropout draws other numbers when it is compiled
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, capturable=torch.cuda.is_available())
        estimator = AlignmentEstimator(optimizer)
        loss_of = torch.compile(network.loss) if way == "compiled" else network.loss
        batch = [part.to(device) for part in network.batch]
        rows = []
        for _ in range(4):
            optimizer.zero_grad(set_to_none=False)
            loss_of(batch).backward()
            rows.append(estimator.sums().tolist()[0])
            estimator.before_step([1e-4])
            optimizer.step()
            estimator.after_step()
        found[way] = rows
    if torch.cuda.is_available():
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                table = estimator.sums()
            graph.replay()
            wait()
            found["sums in a graph"] = table.tolist()
        except RuntimeError as error:
            found["sums in a graph"] = str(error).splitlines()[0]
    return found


# ---------------------------------------------------------------------- offload
def offload(size: Size) -> dict[str, Any]:
    """The largest GPT that stage 3 trains with parameters and optimizer on the host; at toy size one is enough."""
    from lightning_lr.strategies import ZeROStrategy

    largest, layers, most = None, size.layers, 400 if size is FULL else size.layers
    while layers <= most:
        try:
            big = Size(**{**size.__dict__, "layers": layers, "width": 4096 if size is FULL else size.width, "batch": 4})
            module = Network("gpt", big)
            parameters = sum(p.numel() for p in module.parameters())
            trainer = Trainer(
                max_steps=2, accelerator="auto", devices=1, logger=False, callbacks=[],
                precision="bf16-mixed" if torch.cuda.is_available() else "32-true",
                strategy=ZeROStrategy(stage=3, offload_optimizer=True, offload_parameters=True),
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip
            trainer.fit(module, DataLoader(TensorDataset(*module.batch), batch_size=1))
            peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
            largest = {"layers": layers, "parameters": parameters, "peak": peak, "updates": trainer.global_step}
        except (torch.cuda.OutOfMemoryError, MemoryError):
            break
        finally:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        layers *= 2
    return {"largest": largest}


PARTS: dict[str, Callable[[Size], dict[str, Any]]] = {
    "steps": steps,
    "compression": compression,
    "optimizers": optimizers,
    "checkpointing": checkpointing,
    "compiled": compiled,
    "offload": offload,
}


def measure(parts: Sequence[str], size: Size, folder: Path, seconds: float) -> dict[str, dict[str, Any]]:
    """What is not in ``folder`` yet, as far as the time allows."""
    store, found, begin = ResultStore(folder), {}, time.monotonic()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    facts = {"size": str(size), "device": name}
    for part in parts:
        record = store.load(part, facts)
        if record is None:
            if time.monotonic() - begin > seconds:
                print(f"{part}: no time left; call again", flush=True)
                continue
            random.seed(0)
            started = time.monotonic()
            try:
                measured = PARTS[part](size)
            except Exception as error:  # the other parts are worth having
                print(f"{part}: {type(error).__name__}: {error}", flush=True)
                if size is TOY:
                    raise
                continue
            spent = round(time.monotonic() - started, 1)
            record = {"config": facts, "environment": environment(), "seconds": spent, "found": measured}
            store.save(part, record)
        found[part] = record
        print(part, record["seconds"], "s", record["found"], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, nargs="+", help="these parts")
    parser.add_argument("--seconds", type=float, default=420.0, help="after which no part is begun")
    parser.add_argument("--toy", action="store_true", help="to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu", help="folder of the JSON files")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.toy:
        raise SystemExit("benchmarks.gpu: there is no GPU here; --toy shows that the script runs")
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    name = torch.cuda.get_device_name().replace(" ", "_") if torch.cuda.is_available() else "toy"
    measure(arguments.only or list(PARTS), TOY if arguments.toy else FULL, arguments.out / name, arguments.seconds)


if __name__ == "__main__":
    main()
