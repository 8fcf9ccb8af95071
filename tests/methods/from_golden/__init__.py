"""How a method is built for its golden cases: ``KEY.py`` has ``build(case)``, and draws where the case's are special.

A module may also name ``batch(case)``, where the case's own is not what the method is handed, ``SKIPPED``, cases that
its method's own test file tests instead, and ``compare(method, case, trace)``, what the case expects beyond images,
loss and gradients.
"""
