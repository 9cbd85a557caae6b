"""``lightning-lr report``: what a run did and why, during it or afterwards.

``command`` reads the words of the command line. ``record`` reads one log directory and ``resumed_run`` joins those of a
run that was resumed elsewhere; ``summary`` prints it (with ``timing``), ``picture`` draws it, one ``*_panels`` module
per method. Of several runs, ``comparison`` holds what is compared, ``differences`` finds the settings that differ,
``comparison_summary`` prints and ``comparison_picture`` draws.
"""
