"""Losses and gradients of transformers' models under checkpointing against the plain run, to the bit.

    python -m benchmarks.checkpointed_models [--only bert,t5]

Tiny models with random weights in training mode (dropout, LayerDrop and drop path on), three updates of SGD, from the
same weights and random numbers: plainly, and under each policy. Language models also as their cache comes and asked
for (``use_cache=True``), with left-padded masks, and with eager attention. One row per model, case and policy: how many
gradients differ in any bit in any step, and whether the losses do.
Results: ``benchmarks/results/checkpointed_models.json``, written after each model, so that a stopped run continues.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from lightning.pytorch import seed_everything
from torch import Tensor, nn

from benchmarks._common import RESULTS, markdown_table
from lightning_lr.activations import Checkpointing, CheckpointPolicy

FILE = RESULTS / "checkpointed_models.json"
TABLE = RESULTS / "checkpointed_models.md"
WORDS, LENGTH, STEPS = 64, 12, 3
POLICIES = ("sqrt", "every_block")
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "vocab_size": WORDS,
    "num_hidden_layers": 4,
}
IMAGE = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 4, "image_size": 32,
         "patch_size": 8}  # fmt: skip
CAUSAL = {**TEXT, "num_key_value_heads": 1, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
          "eos_token_id": 2}  # fmt: skip
HEADS = {**CAUSAL, "head_dim": 8}
HALVES = {"vocab_size": WORDS, "d_model": 16, "encoder_layers": 4, "decoder_layers": 3, "encoder_attention_heads": 2,
          "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}  # fmt: skip
GPT2 = {"n_embd": 16, "n_layer": 4, "n_head": 2, "vocab_size": WORDS}
MAMBA = {"vocab_size": WORDS, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 4}


def without(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


KINDS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "bert": ("Bert", "ForSequenceClassification", "text", TEXT),
    "roberta": ("Roberta", "ForSequenceClassification", "text", {**TEXT, "max_position_embeddings": 64}),
    "deberta-v2": ("DebertaV2", "ForSequenceClassification", "text",
                   {**TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True,
                    "max_position_embeddings": 64, "position_buckets": 8, "norm_rel_ebd": "layer_norm"}),
    "distilbert": ("DistilBert", "ForSequenceClassification", "text",
                   {"dim": 16, "n_layers": 4, "n_heads": 2, "hidden_dim": 32, "vocab_size": WORDS}),
    "electra": ("Electra", "ForSequenceClassification", "text", {**TEXT, "embedding_size": 8}),
    "albert": ("Albert", "ForSequenceClassification", "text", {**TEXT, "embedding_size": 8}),
    "xlnet": ("XLNet", "ForSequenceClassification", "text",
              {"vocab_size": WORDS, "d_model": 16, "n_layer": 4, "n_head": 2, "d_inner": 32}),
    "xlm": ("XLM", "ForSequenceClassification", "text",
            {"vocab_size": WORDS, "emb_dim": 16, "n_layers": 4, "n_heads": 2}),
    "funnel": ("Funnel", "ForSequenceClassification", "text",
               {"vocab_size": WORDS, "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 32, "block_sizes": [2, 2]}),
    "modernbert": ("ModernBert", "ForSequenceClassification", "text",
                   {**TEXT, "pad_token_id": 0, "attention_dropout": 0.1, "mlp_dropout": 0.1}),
    "gpt2": ("GPT2", "LMHeadModel", "causal", GPT2),
    "gpt_neox": ("GPTNeoX", "ForCausalLM", "causal", TEXT),
    "opt": ("OPT", "ForCausalLM", "causal",
            {"hidden_size": 16, "ffn_dim": 32, "num_attention_heads": 2, "num_hidden_layers": 4, "vocab_size": WORDS,
             "word_embed_proj_dim": 16, "max_position_embeddings": 64}),
    "llama": ("Llama", "ForCausalLM", "causal", HEADS),
    "llama, tied": ("Llama", "ForCausalLM", "causal", {**HEADS, "tie_word_embeddings": True}),
    "mistral": ("Mistral", "ForCausalLM", "causal", HEADS),
    "qwen2": ("Qwen2", "ForCausalLM", "causal", CAUSAL),
    "qwen3": ("Qwen3", "ForCausalLM", "causal", HEADS),
    "gemma": ("Gemma", "ForCausalLM", "causal", HEADS),
    "gemma2": ("Gemma2", "ForCausalLM", "causal", HEADS),
    "phi": ("Phi", "ForCausalLM", "causal", CAUSAL),
    "mixtral": ("Mixtral", "ForCausalLM", "causal",
                {**HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True}),
    "recurrent_gemma": ("RecurrentGemma", "ForCausalLM", "causal",
                        {**without(CAUSAL, "max_position_embeddings", "num_key_value_heads"),
                         "attention_window_size": 8,
                         "lru_width": 16}),
    "mamba": ("Mamba", "ForCausalLM", "state", MAMBA),
    "rwkv": ("Rwkv", "ForCausalLM", "state",
             {"vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 4, "attention_hidden_size": 16}),
    "t5": ("T5", "ForConditionalGeneration", "pairs",
           {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "vocab_size": WORDS, "num_layers": 4,
            "num_decoder_layers": 3, "decoder_start_token_id": 0}),
    "bart": ("Bart", "ForConditionalGeneration", "pairs",
             {**HALVES, "max_position_embeddings": 64, "encoder_layerdrop": 0.3}),
    "whisper": ("Whisper", "ForConditionalGeneration", "speech",
                {**HALVES, "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 20, "pad_token_id": 0,
                 "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "suppress_tokens": None,
                 "begin_suppress_tokens": None}),
    "wav2vec2": ("Wav2Vec2", "ForSequenceClassification", "sound",
                 {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32,
                  "conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2,
                  "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "mask_time_length": 2,
                  "layerdrop": 0.2}),
    "vit": ("ViT", "ForImageClassification", "images", {**IMAGE, "hidden_dropout_prob": 0.1}),
    "deit": ("DeiT", "ForImageClassification", "images", {**IMAGE, "hidden_dropout_prob": 0.1}),
    "beit": ("Beit", "ForImageClassification", "images",
             {**IMAGE, "use_relative_position_bias": True, "drop_path_rate": 0.3, "layer_scale_init_value": 0.1}),
    "dinov2": ("Dinov2", "ForImageClassification", "images",
               {**without(IMAGE, "intermediate_size"), "drop_path_rate": 0.3}),
    "swin": ("Swin", "ForImageClassification", "images",
             {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2],
              "window_size": 4, "hidden_dropout_prob": 0.1}),
    "convnext": ("ConvNext", "ForImageClassification", "images",
                 {"hidden_sizes": [8, 16], "depths": [2, 3], "num_stages": 2, "drop_path_rate": 0.2}),
    "resnet": ("ResNet", "ForImageClassification", "images",
               {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [2, 3]}),
    "segformer": ("Segformer", "ForImageClassification", "images",
                  {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 2, 1, 1], "num_attention_heads": [1, 1, 2, 2],
                   "decoder_hidden_size": 8}),
    "mpnet": ("MPNet", "ForSequenceClassification", "text", TEXT),
    "longformer": ("Longformer", "ForSequenceClassification", "text",
                   {**TEXT, "attention_window": 4, "max_position_embeddings": 64}),
    "bloom": ("Bloom", "ForCausalLM", "causal", {"hidden_size": 16, "n_layer": 4, "n_head": 2, "vocab_size": WORDS,
                                                 "hidden_dropout": 0.1, "attention_dropout": 0.1}),
    "falcon": ("Falcon", "ForCausalLM", "causal",
               {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "vocab_size": WORDS,
                "hidden_dropout": 0.1}),
    "gptj": ("GPTJ", "ForCausalLM", "causal", {**GPT2, "rotary_dim": 4}),
    "olmo2": ("Olmo2", "ForCausalLM", "causal", CAUSAL),
    "phi3": ("Phi3", "ForCausalLM", "causal", CAUSAL),
    "qwen2_moe": ("Qwen2Moe", "ForCausalLM", "causal",
                  {**CAUSAL, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
                   "shared_expert_intermediate_size": 16, "output_router_logits": True}),
    "deepseek_v3": ("DeepseekV3", "ForCausalLM", "causal",
                    {**CAUSAL, "num_key_value_heads": 2, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2,
                     "topk_group": 1, "moe_intermediate_size": 16, "kv_lora_rank": 8, "q_lora_rank": 8,
                     "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "first_k_dense_replace": 1}),
    "jamba": ("Jamba", "ForCausalLM", "causal",
              {**without(CAUSAL, "num_key_value_heads"), "num_key_value_heads": 2, "num_experts": 2,
               "num_experts_per_tok": 1, "mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False,
               "attn_layer_period": 2, "attn_layer_offset": 1}),
    "mamba2": ("Mamba2", "ForCausalLM", "state",
               {**MAMBA, "num_heads": 4, "head_dim": 8, "n_groups": 2, "chunk_size": 4}),
    "falcon_mamba": ("FalconMamba", "ForCausalLM", "state", MAMBA),
    "mbart": ("MBart", "ForConditionalGeneration", "pairs",
              {**HALVES, "max_position_embeddings": 64, "decoder_layerdrop": 0.3}),
    "pegasus": ("Pegasus", "ForConditionalGeneration", "pairs", {**HALVES, "max_position_embeddings": 64}),
    "hubert": ("Hubert", "ForSequenceClassification", "sound",
               {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32,
                "conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2,
                "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "mask_time_length": 2,
                "layerdrop": 0.2}),
    "siglip": ("Siglip", "ForImageClassification", "images", {"vision_config": IMAGE}),
    "pvt_v2": ("PvtV2", "ForImageClassification", "images",
               {"image_size": 32, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 2, 1, 1],
                "num_attention_heads": [1, 1, 2, 2], "drop_path_rate": 0.2}),
    "poolformer": ("PoolFormer", "ForImageClassification", "images",
                   {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 2, 1, 1], "drop_path_rate": 0.2}),
    "clip": ("CLIP", "Model", "both",
             {"text_config": {**TEXT, "num_hidden_layers": 2, "max_position_embeddings": 16, "projection_dim": 8,
                              "eos_token_id": 2},
              "vision_config": {**IMAGE, "num_hidden_layers": 3}, "projection_dim": 8}),
}  # fmt: skip
"""Name to class, ending of its class's name, kind of batch, and configuration."""


def batch_of(kind: str) -> dict[str, Any]:
    """A batch of each kind; texts are padded on the left, as in generation."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, WORDS, (4, LENGTH), generator=draw)
    mask = torch.ones_like(ids)
    mask[0, :4], mask[1, :7] = 0, 0
    labels = torch.randint(0, 2, (4,), generator=draw)
    images = torch.randn(4, 3, 32, 32, generator=draw)
    target = torch.randint(3, WORDS, (4, 7), generator=draw)
    return {
        "text": {"input_ids": ids, "attention_mask": mask, "labels": labels},
        "causal": {"input_ids": ids, "attention_mask": mask, "labels": ids},
        "state": {"input_ids": ids, "labels": ids},
        "pairs": {"input_ids": ids, "attention_mask": mask, "labels": target},
        "speech": {"input_features": torch.randn(4, 8, 40, generator=draw), "labels": target},
        "sound": {"input_values": torch.randn(2, 400, generator=draw), "labels": labels[:2]},
        "images": {"pixel_values": images, "labels": labels},
        "both": {"input_ids": ids[:, :8], "pixel_values": images, "return_loss": True},
    }[kind]


def cases(kind: str) -> dict[str, dict[str, Any]]:
    """What else is in the call: caches as they come, asked for, and eager attention (``eager``)."""
    found: dict[str, dict[str, Any]] = {"as it comes": {}}
    if kind in ("causal", "pairs", "speech", "state"):
        found["cache asked for"] = {"use_cache": True}
    if kind in ("causal", "pairs", "speech"):
        found["eager"] = {"eager": True}
    return found


def switch_cache_off(net: nn.Module) -> None:
    """As inside checkpointed steps: a cache lays tensors out otherwise, which is another order of sums."""
    for module in net.modules():
        if hasattr(module, "config"):
            module.config.use_cache = False


def train(make: Callable[[], nn.Module], batch: dict[str, Any], policy: str | None) -> list[list[Tensor]]:
    """Loss and gradients of every step."""
    seed_everything(0, verbose=False)  # wav2vec2 draws its masks from NumPy
    net = make().train()
    if policy is None and not batch.get("use_cache"):
        switch_cache_off(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    checkpointing = Checkpointing(net, CheckpointPolicy(policy), torch.device("cpu")) if policy else None
    seen: list[list[Tensor]] = []
    for step in range(STEPS):
        torch.manual_seed(step)
        optimizer.zero_grad()
        if checkpointing is None:
            loss = net(**batch).loss
        else:
            with checkpointing.step():
                loss = net(**batch).loss
        loss.backward()
        seen.append([loss.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)])
        optimizer.step()
    return seen


def examine(name: str) -> dict[str, dict[str, Any]]:
    """The rows of one model."""
    import transformers as t

    family, ending, kind, settings = KINDS[name]
    rows: dict[str, dict[str, Any]] = {}
    for case, more in cases(kind).items():
        attention = {"attn_implementation": "eager"} if more.get("eager") else {}
        config = getattr(t, f"{family}Config")(**settings, **attention)

        def make(config: Any = config) -> nn.Module:
            model: nn.Module = getattr(t, family + ending)(config)
            return model

        batch = {**batch_of(kind), **without(more, "eager")}
        try:
            plain = train(make, batch, None)
        except Exception as error:
            rows[case] = {"plain run fails": f"{type(error).__name__}: {str(error)[:80]}"}
            continue
        for policy in POLICIES:
            row = rows[f"{case}, {policy}"] = {"gradients": sum(len(step) - 1 for step in plain)}
            try:
                again = train(make, batch, policy)
            except Exception as error:
                row["fails"] = f"{type(error).__name__}: {str(error)[:160]}"
                continue
            pairs = [list(zip(a, b, strict=False)) for a, b in zip(plain, again, strict=True)]
            row["losses differ"] = sum(not torch.equal(*step[0]) for step in pairs)
            row["differ"] = sum(not torch.equal(a, b) for step in pairs for a, b in step[1:]) + sum(
                abs(len(a) - len(b)) for a, b in zip(plain, again, strict=True)
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names, with commas between them, tried again")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    for name in options.only.split(",") if options.only else [name for name in KINDS if name not in found]:
        found[name] = examine(name)
        print(name, found[name], flush=True)
        FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    TABLE.write_text(report(found), encoding="utf-8")
    print(summary(found))


def summary(found: dict[str, Any]) -> str:
    """The counts in a line."""
    rows = [row for model in found.values() for row in model.values()]
    runs = [row for row in rows if "differ" in row]
    return (
        f"{len(found)} models, {len(runs)} runs with {sum(row['gradients'] for row in runs):,} gradients: "
        f"{sum(row['differ'] for row in runs)} gradients and {sum(row['losses differ'] for row in runs)} losses "
        "differ, "
        f"{sum('fails' in row for row in rows)} runs fail"
    )


def report(found: dict[str, Any]) -> str:
    """The table, after the counts."""
    lines = [
        [
            name,
            case,
            str(row.get("gradients", "")),
            str(row.get("differ", row.get("fails", row.get("plain run fails")))),
        ]
        for name, model in found.items()
        for case, row in model.items()
    ]
    table = markdown_table(["model", "case", "gradients", "that differ"], lines)
    return (
        "# Checkpointing transformers' models\n\n`python -m benchmarks.checkpointed_models`; what is compared stands "
        f"at the top of `benchmarks/checkpointed_models.py`. {summary(found)}.\n\n{table}\n"
    )


if __name__ == "__main__":
    main()
