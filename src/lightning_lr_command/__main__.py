"""``python -m lightning_lr_command``, the same as ``lightning-lr``."""

import sys

from lightning_lr_command import main

if __name__ == "__main__":
    sys.exit(main())
