"""What the tests share; a module here holds no test.

- ``toy``: the regression problem that nearly every test trains, its loaders, and what watches the optimizer.
- ``layered_net``, ``checkpointed_nets``, ``valley_loss``: nets with layers, nets that are hard to compute twice, and a
  loss whose best learning rate is known.
- ``two_processes``, ``zero_runs``: many cases in one process group, under DDP and FSDP2, and under DeepSpeed's engine.
- ``gauntlet``: one row for each method; ``gauntlet_in_two_processes``: the strategies that each row runs under.
- ``composition``: the parts that are trained in pairs, each with its closed form.
- ``constructors``: every public constructor with the values that a user may type.
- ``timm_oracle``: timm and torchvision, which are installed outside the environment.
"""
