"""The harness: suites, data, architectures, training, evaluation, results, report, command line.

Names load on first use, so that reading a report never imports PyTorch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmark.evaluation import evaluate
    from benchmark.evaluation_settings import Evaluation

__all__ = ["Evaluation", "evaluate"]


def __getattr__(name: str) -> Any:
    if name == "evaluate":
        from benchmark.evaluation import evaluate

        return evaluate
    if name == "Evaluation":
        from benchmark.evaluation_settings import Evaluation

        return Evaluation
    raise AttributeError(f"module 'benchmark' has no attribute {name!r}")
