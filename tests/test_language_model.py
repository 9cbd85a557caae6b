"""The byte language model of the examples: data that is what it says, a model that learns, ZeRO by one command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger

from examples import GPT, LanguageModel, PythonSourceDataModule
from lightning_lr.cli.report.logger_files import read_csv
from tests.support.zero_runs import needs_deepspeed

REPOSITORY = Path(__file__).parents[1]


def small(batch_size: int = 8) -> PythonSourceDataModule:
    return PythonSourceDataModule(batch_size, context=32, max_bytes=40_000)


def test_a_sample_is_a_text_and_what_follows_each_of_its_bytes() -> None:
    data = small()
    data.setup()
    text, following = data.train_set.tensors
    assert text.shape == following.shape == ((36_000 - 1) // 32, 32)
    assert torch.equal(text[:, 1:], following[:, :-1])
    assert torch.equal(text[1:, 0], following[:-1, -1])
    library = bytes(text.flatten().tolist())
    assert b"import " in library
    assert int(text.max()) < 256


def test_validation_is_text_that_is_not_trained_on() -> None:
    data = small()
    data.setup()
    train, val = (part.tensors[0].flatten().tolist() for part in (data.train_set, data.val_set))
    assert len(val) == pytest.approx(len(train) / 9, rel=0.02)
    again = PythonSourceDataModule(context=32, max_bytes=40_000)
    again.setup()
    assert again.train_set.tensors[0].flatten().tolist() == train
    assert train[-200:] != val[-200:]


def test_too_little_text_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 20 texts of context=128"):
        PythonSourceDataModule(max_bytes=1000)


def test_the_network_sees_no_byte_ahead() -> None:
    torch.manual_seed(0)
    network, text = GPT(dim=16, depth=2, heads=2, context=12), torch.randint(256, (2, 12))
    changed = text.clone()
    changed[:, 7:] = 0
    assert torch.allclose(network(text)[:, :7], network(changed)[:, :7], atol=1e-6)
    assert not torch.allclose(network(text)[:, 7:], network(changed)[:, 7:], atol=1e-3)


def test_it_learns_more_than_how_frequent_each_byte_is(tmp_path: Path) -> None:
    seed_everything(1)
    module = LanguageModel(GPT(dim=32, depth=1, heads=2, context=32), lr=3e-3)
    trainer = Trainer(
        accelerator="cpu", max_steps=60, limit_val_batches=4, logger=CSVLogger(tmp_path), enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1, val_check_interval=60,
    )  # fmt: skip
    trainer.fit(module, small(16))
    losses = read_csv(Path(trainer.log_dir or "") / "metrics.csv")["train_loss"].values
    assert losses[0] > 5.0  # of 256 equally probable bytes: 5.5
    assert sum(losses[-5:]) / 5 < 3.4
    assert float(trainer.callback_metrics["val_bits"]) == pytest.approx(
        float(trainer.callback_metrics["val_loss"]) / torch.log(torch.tensor(2.0)).item(), rel=1e-3
    )


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero_2", "zero_3_offload"])
def test_one_command_trains_it_in_two_processes(name: str, tmp_path: Path) -> None:
    words = ["--trainer.max_steps=4", "--trainer.limit_val_batches=2", "--trainer.val_check_interval=2"]
    words += ["--data.max_bytes=100000", "--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1"]
    command = [sys.executable, "-m", "lightning_lr.cli", "fit", "--config", str(REPOSITORY / f"configs/{name}.yaml")]
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "src")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [*command, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800
    )
    log = read_csv(tmp_path / f"runs/{name}/version_0/metrics.csv")
    assert log["progress/updates"].values == [1, 2, 3, 4], done.stderr
    assert log["train_loss"].values[0] == pytest.approx(5.6, abs=0.3)
