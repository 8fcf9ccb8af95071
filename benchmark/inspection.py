"""What there is to choose from, as lines of text."""

from benchmark import architectures, data, suite
from methods import catalogue


def listing(what: str) -> list[str]:
    """List methods, suites, datasets or architectures, one line each."""
    if what == "methods":
        rows = [(key, _summary(key)) for key in catalogue.names()]
    elif what == "suites":
        rows = [(name, _setting(suite.load(name))) for name in suite.names()]
        rows += [(name, _recipe(suite.load(name))) for name in suite.recipes()]
    elif what == "datasets":
        rows = [(name, data.describe(name).summary) for name in [*data.names(), *data.described_only()]]
    else:
        rows = [(name, architectures.describe(name)) for name in architectures.names()]
        rows.append(("torchvision/NAME", "Any torchvision classifier, such as torchvision/resnet18, untrained."))
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {text}" for name, text in rows]


def _recipe(found: suite.Suite) -> str:
    how = "no row in Table 1" if found.evaluation.row is None else f"its row: {found.evaluation.row}"
    return f"{found.title}: {found.dataset.name}, {found.network.name}, {found.recipe.epochs} epochs, {how}"


def _setting(found: suite.Suite) -> str:
    threat = f"{found.threat.norm} {found.threat.epsilon:.4g}"
    runs = len(found.methods) * len(found.seeds) * len(found.dataset.folds)
    size = f"{len(found.methods)} methods, {runs} runs"
    return f"{found.title}: {found.dataset.name}, {found.network.name}, {threat}, {found.recipe.epochs} epochs, {size}"


def _summary(key: str) -> str:
    method = catalogue.get(key)
    return f"[{method.card.comparison}] {method.card.category}: {(method.__doc__ or '').splitlines()[0]}"
