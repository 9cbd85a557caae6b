"""ZeRO stages 1 to 3 on the real DeepSpeed engine, made to train as DDP would.

``strategy`` is the entry. ``config`` turns its arguments into DeepSpeed's configuration; ``checks`` and
``optimizer_checks`` refuse what the engine would train differently; ``precision`` and ``engine`` adapt Lightning's
steps to the engine; ``sharded_update`` lets an optimizer or a callback see an update that is spread over ranks. For
checkpoints, ``checkpoint`` and ``loading`` read the engine's files, ``saving`` and ``atomic_directory`` write a folder
whole or not at all, and ``universal`` converts between numbers of ranks, stages, and a plain file.
"""
