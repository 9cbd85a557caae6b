"""``lightning-lr plan``: a run before it is trained.

``command`` reads the words of the command line (``options``), ``configured_run`` builds the configured objects without
training them (``epoch`` counts what an epoch yields), and ``walk`` steps the very callbacks that would train through
the run. The result is a ``model`` of the run, with its ``cost`` (``time``, ``activation_memory``, ``state_memory``),
printed by ``table`` and drawn by ``picture``.
"""
