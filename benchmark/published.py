"""Published recipes: a method in the setting of its row of the survey's Table 1, one file each.

``suites/published/KEY.yaml`` is a suite of one method and track ``published``. Whoever writes one follows this pattern
(``tests/benchmark/test_published.py`` holds every file to it)::

    # trades: Table 1, row 2 (Zhang et al., 2019b). What is special about row and recipe, in a sentence or two.
    name: published-KEY
    title: TRADES, published recipe
    note: >-                           # what this cannot repeat: an augmentation, a data set, a network's detail
    track: published
    dataset: {...}                     # name, augment (crop4+flip, ...); labels where the method hides some
    network: {...}                     # name, settings (normalise: none | per_image | data | {mean, std})
    threat: {...}                      # the TRAINING radius
    recipe: {...}                      # optimizer, schedule and what else differs from the defaults of Recipe
    methods:
      KEY: {...}                       # EVERY setting of the method, so that a changed default changes no recipe
    seeds: [0]
    evaluation:                        # the row's attack (row:), and beside it the standard ones
      epsilons, ranked_at, attacks, ranked_checkpoint, row: {...}

Every value stands on a line of its own with its source behind it: ``# spec: train_trades_cifar10.py`` for what paper,
code or README say (``shared/methods/KEY.md``, section "Published recipe"), ``# row: ...`` for what Table 1 as it should
be read says (``results/survey/table1.csv``), ``# ours: why`` where neither does or where ours departs from it.

- Published steps become epochs: steps / ceil(training images / batch). Milestones are fractions of the training: "x0.1
  from epoch 75 of 76, counted from 1" is 74/76, six digits of it.
- All sets hold images out for the choice of an epoch, so that 49,000 of CIFAR-10 are trained on.
- ``ranked_checkpoint`` is the row's: ``last``, or ``best`` where the figure was selected, on our held-out images in
  place of test images. The row's attack runs on it alone, at ``row.epsilon``, which stands in ``ranked_at``.
- A recipe may name a data set that is only described (``imagenet``, ``tiny_imagenet``, ...): it can be tried out by
  ``atbench train --recipe published/KEY --dry`` and not be trained.
"""

from collections.abc import Mapping
from typing import Any

from benchmark import suite
from benchmark.errors import BadInput
from benchmark.suite import Suite

names = suite.recipes


def load(name: str, changes: Mapping[str, Any] | None = None) -> Suite:
    """Read a recipe: a suite of one method, ``published/KEY`` or a YAML file of the user's.

    Raises:
        BadInput: as :func:`benchmark.suite.load`; or for a suite of several methods.
    """
    found = suite.load(name, changes)
    if len(found.methods) != 1:
        raise BadInput(
            f"--recipe takes a suite of one method, such as published/trades, but {name} has {len(found.methods)}: "
            f"name the method and --suite {name}"
        )
    return found


def what_to_train(method: str | None, suite_name: str | None, recipe: str | None) -> tuple[str, str]:
    """Give the name of the suite and the method that a person asks for by METHOD and --suite, or by --recipe.

    Raises:
        BadInput: for both, for neither, or as :func:`load`.
    """
    if recipe is None:
        if method is None:
            raise BadInput("train takes a METHOD, as in `atbench train trades`, or --recipe, as published/trades")
        return suite_name or "digits-common", method
    if method is not None or suite_name is not None:
        given = f"the method {method}" if method is not None else f"--suite {suite_name}"
        raise BadInput(f"--recipe {recipe} says what is trained and how: leave out {given}, or --recipe")
    (only,) = load(recipe).methods
    return recipe, only
