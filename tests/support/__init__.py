"""What the tests share; a module here holds no test.

- ``toy``: the regression problem that nearly every test trains, its loaders, and what watches the optimizer.
- ``layered_net``, ``checkpointed_nets``, ``valley_loss``: nets with layers, nets that are hard to compute twice, and a
  loss whose best learning rate is known.
- ``processes``: many cases in one process group, forked with what ``preloaded`` imports; ``two_processes``: under DDP
  and FSDP2; ``zero_runs``: under DeepSpeed's engine.
- ``rounding``: tolerances, as a number of roundings.
- ``gauntlet``: one row for each method; ``gauntlet_in_two_processes``: the strategies that each row runs under.
- ``composition``: the parts that are trained in pairs, each with its closed form.
- ``random_loops``: training loops drawn at random, each with a plain replay.
- ``constructors``: every public constructor with the values that a user may type.
- ``timm_oracle``: timm and torchvision, which are installed outside the environment.
"""
