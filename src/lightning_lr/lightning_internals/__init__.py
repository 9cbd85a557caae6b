"""Every touch of what Lightning does not promise: private attributes, and the order in which its loop calls things.

Checked against Lightning 2.5.6 and 2.6.6; where they differ, the function says so. Each is named for its purpose; a new
Lightning release can break this one room and no other. Users take it whole:
``from lightning_lr import lightning_internals as internals``.
"""

from lightning_lr.lightning_internals.branches import UnnoticedUpdates, borrowed, scaler_of, unnoticed, why_no_branches
from lightning_lr.lightning_internals.loaders import (
    batch_on_device,
    epoch_length,
    epoch_shape,
    forget_loader_states,
    given_loader_without_length,
    length_of,
    limited_batches,
    loader_shape,
    on_train_loader,
    replace_batch_sampler,
    restart_iterator,
    samples_in_micro_batch,
    set_up_train_loader,
    train_loaders,
)
from lightning_lr.lightning_internals.logs import (
    is_fast_dev_run,
    journal_folder,
    log_metrics,
    log_settings,
    logs_now,
    silent_loggers,
)
from lightning_lr.lightning_internals.loop import (
    begin_epoch_after_resume,
    epochs_of_updates,
    makes_no_update,
    next_position,
    place,
    roll_back_to,
    set_epoch_length,
    starting_position,
    time_limit,
    update_ends,
    why_no_end,
)
from lightning_lr.lightning_internals.optimizers import (
    Scheduled,
    around_configure_optimizers,
    configured_optimizers,
    optimizers_and_schedulers,
)
from lightning_lr.lightning_internals.pytorch_lightning import (
    INSTEAD,
    MIRROR,
    class_of_mirror,
    mirror_is_imported,
    mirror_refuses_unasked,
)
from lightning_lr.lightning_internals.ranks import (
    broadcast_from_rank_zero,
    gather_to_rank_zero,
    maximum_over_ranks,
    mean_over_ranks,
    own_entry,
)
from lightning_lr.lightning_internals.scaler import gradient_scale, has_loss_scaler, loss_scale, remaining_loss_scale
from lightning_lr.lightning_internals.schedulers import bracket_lr_writers, bracket_scheduler_steps
from lightning_lr.lightning_internals.stopping import agree_on_sigterm
from lightning_lr.lightning_internals.strategies import (
    engine_holds_gradients,
    holds_whole_parameters,
    let_accumulation_change,
    weights_finite,
    why_gradients_hidden,
    why_no_micro_batch_gradients,
)
from lightning_lr.lightning_internals.training_step import (
    around_training_step,
    detached_training_step,
    is_compiled,
    takes_the_iterator,
    training_step_arguments,
)
from lightning_lr.lightning_internals.upcoming_batches import UpcomingBatches
from lightning_lr.lightning_internals.updates import (
    after_gradient_clipping,
    after_optimizer_step,
    before_optimizer_step,
    with_gradient_norm,
)

__all__ = [
    "INSTEAD",
    "MIRROR",
    "Scheduled",
    "UnnoticedUpdates",
    "UpcomingBatches",
    "after_gradient_clipping",
    "after_optimizer_step",
    "agree_on_sigterm",
    "around_configure_optimizers",
    "around_training_step",
    "batch_on_device",
    "before_optimizer_step",
    "begin_epoch_after_resume",
    "borrowed",
    "bracket_lr_writers",
    "bracket_scheduler_steps",
    "broadcast_from_rank_zero",
    "class_of_mirror",
    "configured_optimizers",
    "detached_training_step",
    "engine_holds_gradients",
    "epoch_length",
    "epoch_shape",
    "epochs_of_updates",
    "forget_loader_states",
    "gather_to_rank_zero",
    "given_loader_without_length",
    "gradient_scale",
    "has_loss_scaler",
    "holds_whole_parameters",
    "is_compiled",
    "is_fast_dev_run",
    "journal_folder",
    "length_of",
    "let_accumulation_change",
    "limited_batches",
    "loader_shape",
    "log_metrics",
    "log_settings",
    "logs_now",
    "loss_scale",
    "makes_no_update",
    "maximum_over_ranks",
    "mean_over_ranks",
    "mirror_is_imported",
    "mirror_refuses_unasked",
    "next_position",
    "on_train_loader",
    "optimizers_and_schedulers",
    "own_entry",
    "place",
    "remaining_loss_scale",
    "replace_batch_sampler",
    "restart_iterator",
    "roll_back_to",
    "samples_in_micro_batch",
    "scaler_of",
    "set_epoch_length",
    "set_up_train_loader",
    "silent_loggers",
    "starting_position",
    "takes_the_iterator",
    "time_limit",
    "train_loaders",
    "training_step_arguments",
    "unnoticed",
    "update_ends",
    "weights_finite",
    "why_gradients_hidden",
    "why_no_branches",
    "why_no_end",
    "why_no_micro_batch_gradients",
    "with_gradient_norm",
]
