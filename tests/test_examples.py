"""The example package: data that is what it says, networks that train, code that works from Python and from YAML."""

import gzip
import hashlib
import io
import os
import re
import shutil
import struct
import subprocess
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.cli import ArgsType, LightningCLI
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, default_collate

import examples
from examples import Classifier, DigitsDataModule, FashionMNISTDataModule, ResNet, SmallCNN, ViT, plain
from examples.data import fashion_mnist_files as files
from examples.data.idx import CorruptFileError, load_idx, parse_idx, read_contents
from examples.data.images import ImageDataset, collate

REPOSITORY = Path(__file__).parents[1]
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = files.SHA256


def idx_bytes(values: Tensor) -> bytes:
    """The idx format as its authors describe it, written independently of the reader."""
    return struct.pack(f">4B{values.dim()}I", 0, 0, 8, values.dim(), *values.shape) + bytes(values.flatten().tolist())


@pytest.fixture
def contents(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, bytes]:
    """A tiny stand-in for the data set (60 + 20 images), its checksums in force, and nothing installed or cached."""
    generator = torch.Generator().manual_seed(0)

    def random(high: int, *shape: int) -> bytes:
        return idx_bytes(torch.randint(0, high, shape, generator=generator, dtype=torch.uint8))

    made = {
        TRAIN_IMAGES: random(256, 60, 28, 28),
        TRAIN_LABELS: random(10, 60),
        TEST_IMAGES: random(256, 20, 28, 28),
        TEST_LABELS: random(10, 20),
    }
    monkeypatch.setattr(files, "SHA256", {name: hashlib.sha256(data).hexdigest() for name, data in made.items()})
    monkeypatch.setattr(files, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(files.urllib.request, "urlopen", _no_network)
    return made


def _no_network(*_: object, **__: object) -> None:
    raise urllib.error.URLError("no network in tests")


def write(folder: Path, contents: dict[str, bytes], compressed: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        path = folder / (f"{name}.gz" if compressed else name)
        path.write_bytes(gzip.compress(data) if compressed else data)
    return folder


def images_of(dataset: ImageDataset) -> list[bytes]:
    return [bytes(image.flatten().tolist()) for image in dataset.images]


# --- digits ---


def test_digits_splits_are_disjoint_and_complete() -> None:
    from sklearn.datasets import load_digits

    data = DigitsDataModule()
    data.setup()
    images = [*images_of(data.train_set), *images_of(data.val_set), *images_of(data.test_set)]
    assert sorted(images) == sorted(bytes(row) for row in load_digits().data.astype("uint8"))
    assert len(set(images)) == 1797  # no image occurs twice in the source, so none is in two parts


def test_digits_splits_are_stratified() -> None:
    data = DigitsDataModule(val_fraction=0.1, test_fraction=0.2)
    data.setup()
    labels = [part.labels for part in (data.train_set, data.val_set, data.test_set)]
    per_class = torch.cat(labels).bincount().double()
    for part, share in zip(labels, (0.7, 0.1, 0.2), strict=True):
        # each count is rounded to a whole image; the training part gets the rounding of the other two
        torch.testing.assert_close(part.bincount().double(), per_class * share, atol=1.0, rtol=0.0)


def test_digits_split_depends_on_its_seed_alone() -> None:
    def images(seed: int, global_seed: int) -> Tensor:
        torch.manual_seed(global_seed)
        data = DigitsDataModule(seed=seed)
        data.setup("fit")
        return data.train_set.images

    assert torch.equal(images(seed=0, global_seed=1), images(seed=0, global_seed=2))
    assert not torch.equal(images(seed=0, global_seed=1), images(seed=1, global_seed=1))


def test_digits_are_normalised_by_the_training_part() -> None:
    data = DigitsDataModule(batch_size=2000)
    data.setup()
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape == (len(data.train_set), 1, 8, 8)
    assert images.dtype == torch.float32
    assert abs(images.mean()) < 1e-5  # float32 rounding over 80 000 pixels
    assert abs(images.std() - 1) < 1e-5
    assert data.test_set.mean == data.train_set.mean


@pytest.mark.parametrize("fractions", [(0.0, 0.2), (0.1, 0.0), (0.5, 0.5)])
def test_digits_refuse_fractions_that_leave_a_part_empty(fractions: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=rf"val_fraction={fractions[0]}"):
        DigitsDataModule(val_fraction=fractions[0], test_fraction=fractions[1])


def test_train_loader_shuffles_and_evaluation_does_not() -> None:
    data = DigitsDataModule(batch_size=2000)
    data.setup()
    first, second = (next(iter(data.train_dataloader()))[1] for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, second.sort().values)
    assert torch.equal(next(iter(data.val_dataloader()))[1], data.val_set.labels)


# --- batches ---


@pytest.fixture
def dataset() -> ImageDataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (10, 5, 5), dtype=torch.uint8, generator=generator)
    return ImageDataset(images, torch.arange(10, dtype=torch.uint8), mean=72.9, std=90.0)


def test_batched_fetch_equals_collated_samples(dataset: ImageDataset) -> None:
    by_hand = [((dataset.images[i : i + 1].float() - 72.9) / 90.0, i) for i in (3, 0, 9)]
    expected = default_collate(by_hand)
    for batch in (dataset.__getitems__([3, 0, 9]), default_collate([dataset[i] for i in (3, 0, 9)])):
        assert torch.equal(batch[0], expected[0])
        assert torch.equal(batch[1], expected[1])


def test_standard_loader_uses_the_batched_fetch(dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: ImageDataset, index: int) -> None:
        raise AssertionError("fetched sample by sample")

    monkeypatch.setattr(ImageDataset, "__getitem__", refuse)
    batches = list(DataLoader(dataset, batch_size=4, collate_fn=collate))
    assert [labels.tolist() for _, labels in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_wrapping_dataset_without_batched_fetch_is_collated(dataset: ImageDataset) -> None:
    wrapped = ConcatDataset([dataset, dataset])
    images, labels = next(iter(DataLoader(wrapped, batch_size=20, collate_fn=collate)))
    assert images.shape == (20, 1, 5, 5)
    assert labels.tolist() == [*range(10), *range(10)]


def test_dataset_refuses_missing_labels() -> None:
    with pytest.raises(ValueError, match="3 images and 2 labels"):
        ImageDataset(torch.zeros(3, 2, 2, dtype=torch.uint8), torch.zeros(2), 0.0, 1.0)


def test_loader_processes_give_the_same_batches() -> None:
    data = DigitsDataModule(batch_size=100)
    data.setup("fit")
    expected = torch.cat([images for images, _ in data.val_dataloader()])
    data.num_workers = 1
    assert torch.equal(torch.cat([images for images, _ in data.val_dataloader()]), expected)


# --- idx files ---


@pytest.mark.parametrize("compressed", [True, False])
def test_idx_file_is_read_as_written(tmp_path: Path, compressed: bool) -> None:
    values = torch.arange(24, dtype=torch.uint8).view(2, 3, 4)
    raw = idx_bytes(values)
    path = tmp_path / "values"  # recognised by its content, not by its name
    path.write_bytes(gzip.compress(raw) if compressed else raw)
    assert torch.equal(load_idx(path, hashlib.sha256(raw).hexdigest()), values)


def test_idx_file_is_read_once_until_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "values"
    path.write_bytes(idx_bytes(torch.tensor([1, 2], dtype=torch.uint8)))
    first = load_idx(path)
    assert load_idx(path) is first
    path.write_bytes(idx_bytes(torch.tensor([1, 2, 3], dtype=torch.uint8)))
    assert load_idx(path).tolist() == [1, 2, 3]


def test_changed_byte_is_an_error_with_both_checksums(tmp_path: Path) -> None:
    raw = idx_bytes(torch.arange(10, dtype=torch.uint8))
    damaged = raw[:-1] + b"\xff"
    expected, found = (hashlib.sha256(data).hexdigest() for data in (raw, damaged))
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(damaged))
    with pytest.raises(CorruptFileError, match=rf"labels\.gz is corrupt.*expected sha256 {expected}.*found {found}"):
        load_idx(path, expected)


def test_truncated_gzip_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    raw = idx_bytes(torch.randint(0, 256, (5000,), dtype=torch.uint8))
    expected = hashlib.sha256(raw).hexdigest()
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(raw)[:-100])
    with pytest.raises(
        CorruptFileError, match=rf"images\.gz is corrupt.*expected sha256 {expected}.*found [0-9a-f]{{64}}"
    ):
        read_contents(path, expected)


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (b"", "no idx file"),
        (b"<html>not found</html>", "no idx file"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "no idx file"),  # floats
        (b"\0\0\x08\x02\0\0", "no idx file"),  # the header is cut off
        (b"\0\0\x08\x01\0\0\0\x03ab", r"2 data bytes, its header says \[3\]"),
    ],
)
def test_what_is_not_idx_is_refused(contents: bytes, reason: str) -> None:
    with pytest.raises(CorruptFileError, match=rf"some-file .*{reason}"):
        parse_idx(bytearray(contents), "some-file")


# --- Fashion-MNIST: where the files come from ---


@pytest.mark.parametrize("compressed", [True, False])
def test_given_folder_is_used(contents: dict[str, bytes], tmp_path: Path, compressed: bool) -> None:
    data = FashionMNISTDataModule(data_dir=write(tmp_path / "given", contents, compressed), val_size=10)
    data.prepare_data()
    data.setup()
    assert images_of(data.test_set) == [contents[TEST_IMAGES][16 + 784 * i :][:784] for i in range(20)]
    assert data.test_set.labels.tolist() == list(contents[TEST_LABELS][8:])


def test_folders_are_searched_in_order(
    contents: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert files.find_folder() is None
    debian = write(tmp_path / "debian", contents)
    assert files.find_folder() == debian
    cache = write(tmp_path / "cache", contents)
    assert files.find_folder() == cache
    given = write(tmp_path / "given", contents)
    assert files.find_folder(given) == given
    monkeypatch.delenv(files.CACHE_VARIABLE)
    monkeypatch.chdir(tmp_path)
    assert files.find_folder() == debian
    write(tmp_path / "data/fashion-mnist", contents)
    assert files.find_folder() == Path("data/fashion-mnist")


def test_given_folder_without_the_files_is_passed_over_with_a_warning(
    contents: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = write(tmp_path / "cache", contents)
    (cache / "t10k-labels-idx1-ubyte.gz").rename(tmp_path / "elsewhere")
    write(tmp_path / "debian", contents)
    assert files.find_folder(cache) == tmp_path / "debian"
    assert str(cache) in caplog.text


def test_no_files_and_no_network_names_the_ways_out(contents: dict[str, bytes], tmp_path: Path) -> None:
    data = FashionMNISTDataModule(data_dir=tmp_path / "nothing-here")
    with pytest.raises(FileNotFoundError) as caught:
        data.prepare_data()
    message = str(caught.value)
    for part in (
        "nothing-here",
        str(tmp_path / "cache"),
        files.ADDRESS,
        "no network in tests",
        "`make fashion-mnist`",
        "`apt-get install dataset-fashion-mnist`",
        "train-images-idx3-ubyte.gz",
        "data_dir",
        "FASHION_MNIST_DIR",
    ):
        assert part in message
    with pytest.raises(FileNotFoundError, match="make fashion-mnist"):
        data.setup("fit")


@pytest.fixture
def website(contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What the official address answers, by URL; the test may change it."""
    pages = {f"{files.ADDRESS}{name}.gz": gzip.compress(data) for name, data in contents.items()}
    monkeypatch.setattr(files.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(pages[url]))
    return pages


def test_missing_files_are_fetched_into_the_cache_folder(website: dict[str, bytes], tmp_path: Path) -> None:
    data = FashionMNISTDataModule(val_size=10)
    data.prepare_data()
    data.setup()
    assert len(data.train_set) == 50
    assert sorted(os.listdir(tmp_path / "cache")) == sorted(f"{name}.gz" for name in files.SHA256)


def test_fetch_resumes_at_the_missing_files(
    contents: dict[str, bytes], website: dict[str, bytes], tmp_path: Path
) -> None:
    write(tmp_path / "cache", {TRAIN_IMAGES: contents[TRAIN_IMAGES]})
    del website[f"{files.ADDRESS}{TRAIN_IMAGES}.gz"]
    files.fetch_if_missing()
    assert files.find_folder() == tmp_path / "cache"


@pytest.mark.parametrize("damage", [lambda page: page[:-50], lambda page: gzip.compress(b"another file")])
def test_broken_download_leaves_nothing_behind(
    website: dict[str, bytes], tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    url = f"{files.ADDRESS}{TRAIN_LABELS}.gz"
    website[url] = damage(website[url])
    with pytest.raises(FileNotFoundError, match=f"{TRAIN_LABELS}.*expected sha256 {files.SHA256[TRAIN_LABELS]}.*found"):
        files.fetch_if_missing()
    assert os.listdir(tmp_path / "cache") == [f"{TRAIN_IMAGES}.gz"]


def test_corrupt_file_stops_the_run_before_training(contents: dict[str, bytes], tmp_path: Path) -> None:
    damaged = contents[TRAIN_LABELS][:-1] + b"\x0b"
    folder = write(tmp_path / "given", contents | {TRAIN_LABELS: damaged})
    model = Classifier(SmallCNN(width=4))
    before = [p.clone() for p in model.parameters()]
    expected, found = files.SHA256[TRAIN_LABELS], hashlib.sha256(damaged).hexdigest()
    with pytest.raises(CorruptFileError, match=rf"{TRAIN_LABELS}\.gz.*{expected}.*{found}"):
        bare_trainer(max_epochs=1).fit(model, FashionMNISTDataModule(data_dir=folder, val_size=10))
    assert all(map(torch.equal, before, model.parameters()))


# --- Fashion-MNIST: the splits ---


def test_fashion_mnist_splits_are_disjoint_and_complete(contents: dict[str, bytes], tmp_path: Path) -> None:
    data = FashionMNISTDataModule(data_dir=write(tmp_path, contents), val_size=10)
    data.setup("fit")
    train, val = images_of(data.train_set), images_of(data.val_set)
    assert len(val) == 10
    assert sorted(train + val) == sorted(contents[TRAIN_IMAGES][16 + 784 * i :][:784] for i in range(60))


def test_fewer_training_images_are_a_beginning_of_all_and_leave_validation_alone(
    contents: dict[str, bytes], tmp_path: Path
) -> None:
    folder = write(tmp_path, contents)

    def split(train_size: int | None, seed: int = 0) -> tuple[Tensor, Tensor]:
        data = FashionMNISTDataModule(data_dir=folder, val_size=10, train_size=train_size, seed=seed)
        data.setup("fit")
        return data.train_set.images, data.val_set.images

    (all_train, all_val), (few_train, few_val) = split(None), split(7)
    assert torch.equal(few_train, all_train[:7])
    assert torch.equal(few_val, all_val)
    assert not torch.equal(split(7, seed=1)[0], few_train)


@pytest.mark.parametrize(("train_size", "val_size"), [(51, 10), (0, 10), (None, 60), (None, 0)])
def test_sizes_that_do_not_fit_are_refused(
    contents: dict[str, bytes], tmp_path: Path, train_size: int | None, val_size: int
) -> None:
    data = FashionMNISTDataModule(data_dir=write(tmp_path, contents), train_size=train_size, val_size=val_size)
    with pytest.raises(ValueError, match=f"train_size={train_size} and val_size={val_size} .* at most 60"):
        data.setup("fit")


def test_pixels_stay_between_0_and_1_without_normalisation(contents: dict[str, bytes], tmp_path: Path) -> None:
    data = FashionMNISTDataModule(data_dir=write(tmp_path, contents), normalize=False)
    data.setup("test")
    images, _ = next(iter(data.test_dataloader()))
    assert images.min() == 0.0
    assert images.max() == 1.0


REAL_FOLDER = files.find_folder(REPOSITORY / "data/fashion-mnist")


@pytest.mark.skipif(REAL_FOLDER is None, reason="Fashion-MNIST is not on this machine (`make fashion-mnist`)")
def test_real_fashion_mnist_is_balanced_and_normalised() -> None:
    data = FashionMNISTDataModule(data_dir=REAL_FOLDER)
    data.setup()
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [55000, 5000, 10000]
    assert data.test_set.labels.bincount().tolist() == [1000] * 10
    assert (data.train_set.labels.bincount() + data.val_set.labels.bincount()).tolist() == [6000] * 10
    batch, _ = data.train_set.__getitems__(list(range(10000)))
    assert abs(batch.mean()) < 0.02  # 10 000 images: the standard error of their mean brightness is 0.005
    assert abs(batch.std() - 1) < 0.02


# --- Debian's package ---

SCRIPT = REPOSITORY / "scripts/fashion_mnist.sh"


def run_script(tmp_path: Path, **programs: str) -> subprocess.CompletedProcess[str]:
    """Runs the script into tmp_path/data with a path that holds the usual tools and `programs`, but not apt-get."""
    path = tmp_path / "bin"
    path.mkdir()
    for tool in ("bash", "cat", "cut", "dirname", "gzip", "mkdir", "mktemp", "rm", "sha256sum"):
        if found := shutil.which(tool):
            (path / tool).symlink_to(found)
    for name, text in programs.items():
        (path / name.replace("_", "-")).write_text(f"#!/bin/sh\n{text}\n")
        (path / name.replace("_", "-")).chmod(0o755)
    return subprocess.run(
        ["bash", SCRIPT, tmp_path / "data"], env={"PATH": str(path)}, capture_output=True, text=True, timeout=900
    )


def test_script_and_loader_expect_the_same_contents() -> None:
    found = re.findall(r"^([0-9a-f]{64})  (\S+)$", SCRIPT.read_text(), re.MULTILINE)
    assert {name: checksum for checksum, name in found} == files.SHA256


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_script_without_apt_says_what_else_to_do(tmp_path: Path) -> None:
    result = run_script(tmp_path)
    assert result.returncode == 1
    assert "apt-get is not on this machine" in result.stderr
    assert "put the four .gz files" in result.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs bash and the GNU tools")
def test_script_shows_why_apt_failed(tmp_path: Path) -> None:
    result = run_script(tmp_path, apt_get="echo mirror is down >&2; exit 100", dpkg_deb="exit 1")
    assert result.returncode == 1
    assert "mirror is down" in result.stderr
    assert "put the four .gz files" in result.stderr
    assert not (tmp_path / "data").exists()


# --- networks ---

NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "cnn": lambda size: SmallCNN(),
    "cnn without batch norm": lambda size: SmallCNN(batch_norm=False),
    "resnet": lambda size: ResNet(depth=8),
    "vit": lambda size: ViT(image_size=size, patch=size // 4),
}


@pytest.mark.parametrize("size", [8, 28])
@pytest.mark.parametrize("name", NETWORKS)
def test_network_fits_a_batch(name: str, size: int) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name](size)
    images, labels = torch.randn(16, 1, size, size), torch.arange(16) % 10
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert network(images).shape == (16, 10)
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())
    assert losses[-1] < losses[0] / 2


def test_batch_norm_is_optional() -> None:
    assert any(isinstance(m, nn.BatchNorm2d) for m in SmallCNN().modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in SmallCNN(batch_norm=False).modules())


@pytest.mark.parametrize(("depth", "convolutions"), [(8, 7), (14, 13), (20, 19)])
def test_resnet_depth_counts_its_layers(depth: int, convolutions: int) -> None:
    kernels = [m.kernel_size for m in ResNet(depth).modules() if isinstance(m, nn.Conv2d)]
    assert kernels.count((3, 3)) == convolutions  # and one linear layer; shortcuts are not counted


@pytest.mark.parametrize("depth", [2, 9, 18])
def test_resnet_refuses_other_depths(depth: int) -> None:
    with pytest.raises(ValueError, match=f"depth={depth}"):
        ResNet(depth)


def test_vit_refuses_a_patch_that_does_not_divide_the_image() -> None:
    with pytest.raises(ValueError, match="patch=5 must divide image_size=28"):
        ViT(image_size=28, patch=5)


# --- Lightning ---


def bare_trainer(**arguments: Any) -> Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", devices=1, **(quiet | arguments))


def test_few_updates_lower_the_loss_on_digits() -> None:
    seed_everything(0, verbose=False)
    data, model = DigitsDataModule(), Classifier(SmallCNN(stem_stride=1))
    trainer = bare_trainer(max_steps=40)
    before = trainer.validate(model, data, verbose=False)[0]
    trainer.fit(model, data)
    after = trainer.validate(model, data, verbose=False)[0]
    assert after["val_loss"] < before["val_loss"] / 2
    assert after["val_acc"] > 0.7  # 0.1 is chance


def test_logged_accuracy_and_loss_are_those_of_the_whole_test_set() -> None:
    torch.manual_seed(0)
    data, model = DigitsDataModule(batch_size=77), Classifier(SmallCNN())
    logged = bare_trainer().test(model, data, verbose=False)[0]
    images, labels = data.test_set.__getitems__(list(range(len(data.test_set))))
    with torch.no_grad():
        logits = model.eval()(images)
    assert logged["test_acc"] == pytest.approx((logits.argmax(1) == labels).float().mean().item(), abs=1e-6)
    # float32 means over other batch sizes
    assert logged["test_loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


YAML = """
seed_everything: 0
trainer: {max_steps: 2, accelerator: cpu, devices: 1, logger: false, enable_checkpointing: false,
          enable_progress_bar: false, enable_model_summary: false}
model:
  class_path: examples.Classifier
  init_args:
    lr: 0.05
    network: {class_path: examples.SmallCNN, init_args: {width: 4, batch_norm: false}}
data: {class_path: examples.DigitsDataModule, init_args: {batch_size: 32}}
"""


def run_cli(tmp_path: Path, config: str) -> LightningCLI:
    (tmp_path / "config.yaml").write_text(config)
    arguments: ArgsType = ["fit", "--config", str(tmp_path / "config.yaml")]
    return LightningCLI(save_config_callback=None, args=arguments)


def test_yaml_alone_describes_a_run(tmp_path: Path) -> None:
    cli = run_cli(tmp_path, YAML)
    assert isinstance(cli.model.network, SmallCNN)
    assert isinstance(cli.datamodule, LightningDataModule)
    assert cli.trainer.global_step == 2
    optimizer = cli.trainer.optimizers[0]
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert optimizer.param_groups[0]["nesterov"]


@pytest.mark.filterwarnings("ignore:.*configure_optimizers.*will be overridden")
def test_yaml_optimizer_takes_the_place_of_the_modules(tmp_path: Path) -> None:
    cli = run_cli(tmp_path, YAML + "optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.01}}\n")
    optimizer = cli.trainer.optimizers[0]
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["lr"] == 0.01


def test_plain_project_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # it logs and saves where a new project does: in the working directory
    trainer = plain.main(max_epochs=3)
    assert trainer.callback_metrics["val_acc"] > 0.7  # 0.1 is chance


def test_examples_do_not_know_lightning_lr() -> None:
    sources = [path for path in (REPOSITORY / "examples").rglob("*.py") if path.name != "demo.py"]
    assert REPOSITORY / "examples/plain.py" in sources
    assert not [path for path in sources if "lightning_lr" in path.read_text()]


def test_public_names_are_importable() -> None:
    assert all(hasattr(examples, name) for name in examples.__all__)
