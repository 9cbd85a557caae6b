"""What a process of a test has imported before it begins: imported once by the server that forks them.

The imports take a process five to ten seconds, and the tests start some fifty.
"""

from __future__ import annotations

import gc
import importlib
import os
from contextlib import suppress

os.environ.setdefault("DS_ACCELERATOR", "cpu")
NAMES = (
    "pytest",
    "lightning.pytorch",
    "torch.distributed.fsdp",
    "torch._dynamo",
    "gpytorch",
    "deepspeed",
    "deepspeed.ops.op_builder",
    "deepspeed.runtime.zero.stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # by the first engine, and with it the whole of torch.compile
    "lightning_lr",
)
gc.disable()
for name in NAMES:
    with suppress(ImportError):
        importlib.import_module(name)
gc.freeze()  # what the forked processes share: no collection goes through it, and no page of it is copied
gc.enable()
