"""What every test runs under, and a small network that several of them attack."""

import copy
import signal

import pytest
import torch

torch.set_num_threads(1)  # the suite runs in several processes, and two times two threads on two cores crawl


@pytest.fixture(scope="session")
def _trained(tmp_path_factory):
    from benchmark import suite
    from benchmark.data import load
    from benchmark.experiment import plan
    from benchmark.tasks import restore
    from benchmark.training import train

    chosen = suite.load("quickstart", {"recipe.epochs": 8, "methods": {"natural": None}})
    (experiment,) = plan(chosen)
    folder = tmp_path_factory.mktemp("trained") / experiment.name
    card = train(experiment, folder)
    network = restore(experiment, folder / "last.safetensors", card["weights"]["last"]["sha256"])
    return network.cpu(), load("digits").test


@pytest.fixture
def digits_network(_trained):
    """A network trained for two seconds without a defence (97 % clean, some 60 % at 0.1), and 400 test images."""
    network, images = _trained
    return copy.deepcopy(network), images


@pytest.fixture
def atbench(monkeypatch):
    """Give words to ``atbench`` in this process and get its exit code; figures are left out, they take five seconds."""
    from benchmark import cli

    monkeypatch.setattr("benchmark.report.folder.FIGURES", ())

    def run(*words):
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as ended:
                cli.main([str(word) for word in words])
        finally:
            signal.signal(signal.SIGTERM, handler)
        return ended.value.code

    return run
