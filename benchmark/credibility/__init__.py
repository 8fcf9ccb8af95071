"""Can a row be believed? One function per check, thresholds in ``rules``, colours in ``colours``.

``record``, ``rules`` and ``colours`` are read by reports and know no PyTorch; the rest probes networks.
"""
