"""Layers of the models that people fine-tune: transformers, timm and torchvision, at true depth, without weights.

    python -m benchmarks.zoo [--source transformers timm torchvision] [--only bert,resnet] [--again] [--layers FILE]

Every model is built with its default configuration on the meta device, so that no weight is allocated, and its layers
are found as by ``LayerwiseLRDecay(layers="auto")``. One row per model: the depth found, the depth by the rule of its
family, parameters in the wrong place, whether every parameter has exactly one layer, and whether a warning said that
the order is a guess. Rules of families:

- timm: its own ``param_groups_layer_decay`` from the model's ``group_matcher``; each parameter's factor is compared.
- transformers with one stack of ``num_hidden_layers`` (``depths``) blocks: stem, blocks, head (BEiT's counting). Block
  ``i`` of ``n`` is ``n - i`` below the head.
- torchvision's models of which the paper says how many blocks there are: these, and stem and head.
- everything else has no rule. Its layers were looked at once and the depth is frozen in the table: a later run that
  finds another one reports it.

A row is ``right`` (agrees with the rule), ``warned`` (differs and says so), ``wrong`` (differs silently), or
``frozen``.
Results: ``benchmarks/results/zoo.json``, written after each model, so that a stopped run continues; and ``zoo.md``.
timm and torchvision come from the folder of tests/support/timm_oracle.py.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import os
import re
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from torch import nn

from benchmarks._common import RESULTS, markdown_table
from lightning_lr.layers import GroupSplitter, LayerMap

FILE = RESULTS / "zoo.json"
TABLE = RESULTS / "zoo.md"
TASKS = {
    "sequence classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "causal language model": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "image classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "sequence to sequence": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "audio classification": "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
    "segmentation": "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES",
    "object detection": "MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES",
    "depth estimation": "MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES",
    "image and text": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "two towers": "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES",
}
"""Tasks of transformers, and its tables of models for them; a model that does several tasks is tried in the first."""
TORCHVISION = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18",
    "resnet50", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_0", "swin_t", "swin_v2_t", "vgg11", "vgg16_bn",
    "vit_b_16", "wide_resnet50_2", "segmentation.deeplabv3_resnet50", "segmentation.fcn_resnet50",
    "segmentation.deeplabv3_mobilenet_v3_large", "segmentation.lraspp_mobilenet_v3_large",
    "detection.fasterrcnn_resnet50_fpn",
    "detection.fcos_resnet50_fpn", "detection.keypointrcnn_resnet50_fpn", "detection.maskrcnn_resnet50_fpn",
    "detection.retinanet_resnet50_fpn", "detection.ssd300_vgg16", "detection.ssdlite320_mobilenet_v3_large",
    "optical_flow.raft_small", "optical_flow.raft_large", "video.mvit_v1_b", "video.r3d_18",
    "video.s3d", "video.swin3d_t",
)  # fmt: skip
BY_PAPER = {
    "resnet18": 8, "resnet50": 16, "resnext50_32x4d": 16, "wide_resnet50_2": 16, "convnext_tiny": 18, "swin_t": 12,
    "swin_v2_t": 12, "vit_b_16": 12, "mvit_v1_b": 16, "r3d_18": 8, "swin3d_t": 12, "fcn_resnet50": 16,
    "deeplabv3_resnet50": 16, "fasterrcnn_resnet50_fpn": 16, "retinanet_resnet50_fpn": 16, "fcos_resnet50_fpn": 16,
    "maskrcnn_resnet50_fpn": 16, "keypointrcnn_resnet50_fpn": 16,
}  # fmt: skip
"""Blocks of torchvision's models by their papers; stem and head make two more."""
BLOCKS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers")
"""Where a configuration of transformers says how many blocks there are."""


# ---------------------------------------------------------------------- the models
def transformers_models() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """One model per class of transformers and task."""
    import transformers
    from transformers.models.auto import modeling_auto

    seen: set[str] = set()
    for task, table in TASKS.items():
        for kind, names in getattr(modeling_auto, table).items():
            name = names if isinstance(names, str) else names[0]
            if name in seen:
                continue
            seen.add(name)

            def make(name: str = name) -> nn.Module:
                model = getattr(transformers, name)
                return model(model.config_class())

            yield f"transformers/{task}/{kind}", make


def timm_models() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """The smallest model of each of timm's modules, and some as backbones."""
    timm = import_peers()
    if timm is None:
        return
    registry = sys.modules["timm.models._registry"]
    families: dict[str, list[str]] = defaultdict(list)
    for name in timm.list_models():
        families[registry._model_to_module[name]].append(name)
    small = ("test_", "tiny", "nano", "atto", "xxs", "_s", "18", "b0", "small", "015", "002", "_t")
    for family, names in sorted(families.items()):
        name = min(names, key=lambda n: (not any(part in n for part in small), len(n), n))
        yield f"timm/{family}/{name}", lambda name=name: timm.create_model(name)
    for name in ("swin_tiny_patch4_window7_224", "convnext_atto", "resnet18", "efficientnet_lite0"):
        yield f"timm/features/{name}", lambda name=name: timm.create_model(name, features_only=True)


def torchvision_models() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """torchvision's models of every kind."""
    if import_peers() is None:
        return
    models: Any = sys.modules["torchvision.models"]
    for name in TORCHVISION:
        arguments: dict[str, Any] = {"weights": None}
        if name.startswith(("segmentation", "detection")):
            arguments["weights_backbone"] = None
        if name in ("googlenet", "inception_v3"):
            arguments["init_weights"] = False
        place, _, short = name.rpartition(".")
        room = getattr(models, place) if place else models
        yield (
            f"torchvision/{place or 'classification'}/{short}",
            lambda r=room, s=short, a=arguments: getattr(r, s)(**a),
        )


def import_peers() -> Any:
    """timm, with torchvision, or ``None`` where they are not installed."""
    try:
        from tests.support.timm_oracle import import_timm

        return import_timm()
    except BaseException as error:  # pytest's Skipped is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        print(f"without timm and torchvision: {error}")
        return None


SOURCES = {"transformers": transformers_models, "timm": timm_models, "torchvision": torchvision_models}


# ---------------------------------------------------------------------- the rules
def expected(model: nn.Module) -> dict[str, int] | None:
    """Distance from the top of the parameters whose place a rule of the family says; ``None`` without a rule."""
    if hasattr(model, "group_matcher"):
        return by_timm(model)
    config = getattr(model, "config", None)
    return by_config(model, config) if config is not None else None


def by_timm(model: nn.Module) -> dict[str, int]:
    """Distances by timm's own layer decay."""
    timm_optim = sys.modules["timm.optim"]
    name_of = {id(p): name for name, p in model.named_parameters()}
    groups = timm_optim.param_groups_layer_decay(model, weight_decay=0.0, layer_decay=0.5)  # type: ignore[attr-defined]
    scales = sorted({group["lr_scale"] for group in groups}, reverse=True)
    return {name_of[id(p)]: scales.index(group["lr_scale"]) for group in groups for p in group["params"]}


def by_config(model: nn.Module, config: Any) -> dict[str, int] | None:
    """Distances of the blocks of a model with one stack, as its configuration counts them."""
    parts = [getattr(config, n, None) for n in ("text_config", "vision_config", "audio_config", "encoder", "decoder")]
    if any(hasattr(part, "num_hidden_layers") for part in parts) or getattr(config, "is_encoder_decoder", False):
        return None
    depths = getattr(config, "depths", None)
    names = [name for name, _ in model.named_parameters()]
    if isinstance(depths, Sequence):
        return _stages(names, [int(depth) for depth in depths])
    count = next((getattr(config, name) for name in BLOCKS if isinstance(getattr(config, name, None), int)), None)
    stacks: dict[str, set[int]] = defaultdict(set)
    for name in names:
        found = re.match(r"((?:[a-zA-Z_]\w*\.)*?[a-zA-Z_]\w*)\.(\d+)\.", name)
        if found:
            stacks[found.group(1)].add(int(found.group(2)))
    right = [path for path, numbers in stacks.items() if count and numbers == set(range(count))]
    others = [path for path in stacks if path not in right]
    last = {path.rpartition(".")[2] for path in right}
    if not right or any(len(stacks[path]) > 2 or path.rpartition(".")[2] in last for path in others):
        return None
    stack = re.compile("|".join(rf"{re.escape(path)}\.(\d+)\." for path in right))
    places: dict[str, int] = {}
    for name in names:
        if found := stack.match(name):
            places[name] = count - int(next(n for n in found.groups() if n is not None))
    return _with_a_top(names, places, count)


def _stages(names: Sequence[str], depths: Sequence[int]) -> dict[str, int] | None:
    """Distances of ``<stages>.<s>.<blocks>.<b>`` where stage s has ``depths[s]`` blocks."""
    found: dict[tuple[str, str], dict[tuple[int, int], list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        if match := re.match(r"(.*?)\.(\d+)\.(?:([a-zA-Z]\w*)\.)?(\d+)\.", name):
            path, stage, inner, block = match.groups()
            found[path, inner or ""][int(stage), int(block)].append(name)
    wanted = [(stage, block) for stage, depth in enumerate(depths) for block in range(depth)]
    for blocks in found.values():
        others = {
            match.group(1) for name in names if (match := re.match(r"(.*decoder\.(?:stages|layers|blocks))\.\d+", name))
        }
        if sorted(blocks) == wanted and not others:
            places = {n: len(wanted) - i for i, key in enumerate(wanted) for n in blocks[key]}
            return _with_a_top(names, places, len(wanted))
    return None


def _with_a_top(names: Sequence[str], places: dict[str, int], count: int) -> dict[str, int]:
    """One less each where nothing but the blocks and what is below them is trained: a head of tied weights alone."""
    before = min(i for i, name in enumerate(names) if name in places)
    head = re.compile(
        r"(.*\.)?(\w*classifier|score|lm_head|head|pooler|\w*pred\w*|logits_proj|cls|final_layer_norm)\b.*"
    )
    below = re.compile(r".*embed(?!ding_norm).*", re.I)  # what is defined after the blocks and used before them
    after = [name for name in names[before:] if name not in places and not below.fullmatch(name)]
    topped = bool(after) or any(head.match(name) for name in names if name not in places)
    return {name: distance - (not topped) for name, distance in places.items()}


# ---------------------------------------------------------------------- a row
def examine(key: str, make: Callable[[], nn.Module]) -> tuple[dict[str, Any], LayerMap | None]:
    """The row of a model, and its layers."""
    try:
        with torch.device("meta"), warnings.catch_warnings(), quiet():
            warnings.simplefilter("ignore")
            model = make()
    except Exception as error:
        return {"not built": f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"}, None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        splitter = GroupSplitter(model)
        groups, _ = splitter.split([p for p in model.parameters() if p.requires_grad], 0.01)
    found = splitter.map
    assert found is not None
    said = [warning for warning in said if "give layers as" in str(warning.message)]
    name_of = {id(p): name for name, p in model.named_parameters()}
    trained = Counter(name_of[id(p)] for group in groups for p in group["params"])
    distance = {name: found.depth - 1 - layer.depth for layer in found.layers for name in layer.parameters}
    rule = expected(model)
    row: dict[str, Any] = {
        "how": found.how,
        "depth": found.depth,
        "layers": len(found.layers),
        "parameters": len(distance),
        "covered": trained == Counter({name: 1 for name, p in model.named_parameters() if p.requires_grad})
        and sorted(distance) == sorted(name_of.values()),
        "warned": bool(said),
        "rule": None,
        "order errors": 0,
    }
    if rule:
        row["rule"] = 1 + max(rule.values()) + ("group_matcher" not in dir(model) and max(rule.values()) < found.depth)
        row["order errors"] = sum(distance[name] != place for name, place in rule.items())
    elif key.startswith("torchvision") and key.rpartition("/")[2] in BY_PAPER:
        row["rule"] = BY_PAPER[key.rpartition("/")[2]] + 2
        row["order errors"] = abs(row["rule"] - found.depth)
    return row, found


def verdict(row: dict[str, Any], before: dict[str, Any] | None = None) -> str:
    """``right``, ``warned``, ``wrong`` or ``frozen``, as the module's docstring says."""
    if not row["covered"]:
        return "wrong"
    if row["rule"] is not None:
        return "right" if not row["order errors"] else "warned" if row["warned"] else "wrong"
    if before is not None and before.get("depth") not in (None, row["depth"]):
        return "wrong"
    return "frozen"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the libraries log while a model is built."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


# ---------------------------------------------------------------------- all of them
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--only", help="parts of names, with commas between them")
    parser.add_argument("--again", action="store_true", help="try models that have a row again")
    parser.add_argument("--layers", type=Path, help="append every model's layers to this file, to look at")
    parser.add_argument("--out", type=Path, default=FILE)
    options = parser.parse_args()
    rows: dict[str, dict[str, Any]] = json.loads(options.out.read_text()) if options.out.exists() else {}
    for source in options.source:
        for key, make in SOURCES[source]():
            if options.only and not any(part in key for part in options.only.split(",")):
                continue
            if key in rows and not options.again:
                continue
            row, found = examine(key, make)
            if found is not None:
                row["verdict"] = verdict(row, rows.get(key))
            rows[key] = row
            print(key, row, flush=True)
            if options.layers and found is not None:
                with options.layers.open("a", encoding="utf-8") as file:
                    shown = [(layer.name, layer.depth, list(layer.parameters)) for layer in found.layers]
                    file.write(json.dumps({"key": key, **row, "found": shown}) + "\n")
            options.out.write_text(json.dumps(rows, indent=0) + "\n", encoding="utf-8")
            gc.collect()
    if options.out == FILE:
        TABLE.write_text(report(rows), encoding="utf-8")


def report(rows: dict[str, dict[str, Any]]) -> str:
    """The table of all models, after a table of counts."""
    tried = {key: row for key, row in rows.items() if "verdict" in row}
    sources = sorted({key.split("/")[0] for key in tried})
    counts = [
        [
            source,
            *(str(sum(key.startswith(source) and test(row) for key, row in tried.items())) for test in COUNTS.values()),
        ]
        for source in [*sources]
    ]
    counts.append(["all", *(str(sum(map(test, tried.values()))) for test in COUNTS.values())])
    header = ["model", "depth", "by the family's rule", "order errors", "covered", "warned", "found by", "verdict"]
    lines = [
        [key, str(r["depth"]), str(r["rule"] or "-"), str(r["order errors"]), "yes" if r["covered"] else "NO",
         "yes" if r["warned"] else "", r["how"], r["verdict"]]
        for key, r in sorted(tried.items())
    ]  # fmt: skip
    return (
        "# The zoo: layers of models that people fine-tune\n\n`python -m benchmarks.zoo`; the columns are explained "
        "at the top of `benchmarks/zoo.py`. Models whose default configuration does not build without further packages "
        f"or weights are left out ({len(rows) - len(tried)}).\n\n{markdown_table(['', *COUNTS], counts)}\n\n"
        f"{markdown_table(header, lines)}\n"
    )


COUNTS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "models": lambda row: True,
    "right by their family's rule": lambda row: row["verdict"] == "right",
    "differ and warn": lambda row: row["verdict"] == "warned",
    "differ silently": lambda row: row["verdict"] == "wrong",
    "no rule, frozen": lambda row: row["verdict"] == "frozen",
    "every parameter once": lambda row: row["covered"],
}

if __name__ == "__main__":
    main()
