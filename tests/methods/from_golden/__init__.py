"""How a method is built for its golden cases: ``KEY.py`` has ``build(case)``, and draws where the case's are special.

A module may also name ``SKIPPED``, cases that its method's own test file tests instead, and ``compare(method, case,
trace)``, what the case expects beyond images, loss and gradients.
"""
