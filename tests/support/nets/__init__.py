"""Hand-written networks, each with the right order of its layers beside it, written before any code looked at them."""

from tests.support.nets import (  # noqa: F401  # each adds its own
    adapted,
    eighth_images,
    eighth_others,
    eighth_sequences,
    everyday,
    fifth_mixed,
    fourth_everyday,
    generative,
    held_out_images,
    held_out_signals,
    misleading,
    optional_inputs,
    published_others,
    published_text,
    published_vision,
    recurrent,
    second_images,
    second_others,
    second_sequences,
    seventh_images,
    seventh_others,
    seventh_sequences,
    sixth_mixed,
    stacks,
    styles,
    third_models,
    third_styles,
    towers,
    undecidable,
    vision,
)
from tests.support.nets.collection import NETS, wrong_places

__all__ = ["NETS", "wrong_places"]
