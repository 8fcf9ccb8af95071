"""Every mistake that can be made in a file of one's own: told with the file and line, before anything is trained."""

import sys
from pathlib import Path

import pytest

from tests.benchmark.user_files import DATA, METHOD, NETWORK, run, write

LOSS = "    def training_loss(self, batch):\n"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


FAULTY = "    def __init__(self, network, threat):\n        super().__init__(network, threat)\n\n"
WRONG_METHODS = {
    "no file": (None, "there is no file my.py (named by my.py:Mine)"),
    "no class": (METHOD.replace("Mine", "Other"), "my.py has no class 'Mine': it has Other"),
    "a syntax error": (METHOD.replace("Mine(", "Mine(("), "my.py, line 5: SyntaxError"),
    "an import error": ("import nothing_of_that_name\n" + METHOD, "my.py, line 1: ModuleNotFoundError"),
    "an error on import": (METHOD + "\n1 / 0\n", "my.py, line 9: ZeroDivisionError: division by zero"),
    "an exit on import": ("import sys\nsys.exit(3)\n", "my.py, line 2: SystemExit: 3"),
    "no text": ("\0", "my.py"),
    "no subclass": (
        METHOD.replace("(AdversarialTraining)", "(dict)"),
        "my.py, line 5: a method is a subclass of methods.base.AdversarialTraining, but Mine is a subclass of dict",
    ),
    "a function": (METHOD.replace("class Mine(AdversarialTraining)", "def Mine()"), "but Mine is a function"),
    "no loss": (METHOD.replace("training_loss", "loss"), "my.py, line 5: Mine has no training_loss(self, batch)"),
    "a loss with another signature": (
        METHOD.replace("(self, batch)", "(self, x, y)"),
        "my.py, line 6: training_loss takes (self, batch), but found (self, x, y)",
    ),
    "a constructor without the common settings": (
        METHOD.replace(LOSS, FAULTY + LOSS),
        "my.py, line 6: Mine is made with (network, threat, *, own settings, **common), but found (network, threat)",
    ),
    "a constructor that fails": (
        METHOD.replace(LOSS, f"    def __init__(self, network, threat, **common):\n        1 / 0\n\n{LOSS}"),
        "my.py, line 7: Mine() failed with ZeroDivisionError: division by zero",
    ),
    "a setting without a default": (
        METHOD.replace(
            LOSS,
            "    def __init__(self, network, threat, *, beta: float, **common):\n"
            f"        super().__init__(network, threat, **common)\n\n{LOSS}",
        ),
        "methods.mine: ",
    ),
    "a key that is taken": (
        METHOD.replace(LOSS, f"    card = Card(key='trades', category='own', citation='')\n\n{LOSS}").replace(
            "Training\n", "Training, Card\n"
        ),
        "my.py, line 5: the key 'trades' is that of another method: rename the class",
    ),
    "a key that leaves its folder": (
        METHOD.replace("AdversarialTraining\n", "AdversarialTraining, Card\n").replace(
            LOSS, f"    card = Card(key='../x', category='own', citation='')\n\n{LOSS}"
        ),
        "my.py, line 5: a key is 1 to 60 letters, digits",
    ),
    "no card": (METHOD.replace(LOSS, f"    card = 'mine'\n\n{LOSS}"), "card is a methods.base.Card, but found a str"),
}


@pytest.mark.parametrize(("text", "says"), WRONG_METHODS.values(), ids=WRONG_METHODS)
def test_a_mistake_in_a_method_is_told_with_file_and_line_before_anything_is_trained(text, says, atbench, capsys):
    if text is not None:
        write(text)
    assert atbench(*run("--method", "my.py:Mine")) == 2
    told = capsys.readouterr().err
    assert says in told
    assert "Traceback" not in told
    assert [path.name for path in Path().iterdir()] == (["my.py"] if text is not None else [])


WRONG_NETWORKS = {
    "another number of classes": (
        NETWORK.replace(", classes)", ", 5)"),
        "my.py, line 4: the network returns logits of shape (2, 10) for 2 images of digits, but found (2, 5)",
    ),
    "another image size": (
        NETWORK.replace("size**2", "81"),
        "my.py, line 4: the network failed on images of shape (2, 1, 8, 8) with RuntimeError: mat1 and mat2",
    ),
    "an error in its forward": (
        NETWORK + "\n\nclass build(nn.Module):\n    def forward(self, x):\n        return x / None\n",
        "my.py, line 10: the network failed on images of shape (2, 1, 8, 8) with TypeError",
    ),
    "a pair": (
        "from torch import nn\n\nclass build(nn.Module):\n    def forward(self, x):\n        return x, x\n",
        "my.py, line 3: the network returns one tensor of logits (n, classes), but found a tuple",
    ),
    "no network": ("def build():\n    return 3\n", "my.py, line 1: build returns an nn.Module, but found int"),
    "an error in the builder": ("def build():\n    1 / 0\n", "my.py, line 2: build() failed with ZeroDivisionError"),
    "an argument that nobody knows": (
        "def build(depth):\n    return depth\n",
        "my.py, line 1: build() failed with TypeError: build() missing 1 required positional argument: 'depth'",
    ),
    "no builder": (NETWORK.replace("build", "make"), "my.py has no function 'build': it has make"),
}


@pytest.mark.parametrize(("text", "says"), WRONG_NETWORKS.values(), ids=WRONG_NETWORKS)
def test_a_mistake_in_a_network_is_told_with_file_and_line_before_anything_is_trained(text, says, atbench, capsys):
    write(text)
    assert atbench(*run("--network", "my.py:build")) == 2
    assert says in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["my.py"]


WRONG_DATA = {
    "floats": (
        DATA.replace("draws.integers(0, 256, (300, 6, 6), dtype=np.uint8)", "draws.random((300, 6, 6))"),
        "my.py, line 4: my_data: training images must be uint8, got float64: multiply pixels in [0, 1] by 255",
    ),
    "channels last": (DATA.replace("(300, 6, 6)", "(300, 6, 6, 3)"), "move the channels forward"),
    "dark pixels": (DATA.replace("(0, 256", "(0, 2"), "the pixels of 'train' go from 0 to 255, but found none above 1"),
    "too few labels": (
        DATA.replace("labels[:240]", "labels[:9]"),
        "my.py, line 4: my_data: training images and labels must be as many, got 240 and 9",
    ),
    "labels below 0": (
        DATA.replace("% 4", "% 4 - 1"),
        "my.py, line 4: the train part of my_data must have labels",
    ),
    "no test images": (DATA.replace('"test"', '"tset"'), "but found no 'test' in a dict"),
    "nothing": (DATA.replace("return", "_ ="), "but found no 'train' in a NoneType"),
    "an error": (DATA.replace("return", "1 / 0\n    return"), "my.py, line 7: my_data() failed with ZeroDivisionError"),
    "few images": (DATA.replace("240", "100"), "my_data has 80 training images: asked for 200"),
    "no function": (DATA.replace("my_data", "mine"), "my.py has no class or function 'my_data': it has mine"),
}


@pytest.mark.parametrize(("text", "says"), WRONG_DATA.values(), ids=WRONG_DATA)
def test_a_mistake_in_a_data_set_is_told_with_file_and_line_before_anything_is_trained(text, says, atbench, capsys):
    write(text)
    assert atbench(*run("--dataset", "my.py:my_data")) == 2
    assert says in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["my.py"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--method", "my.py"], "a file of your own is named with what it holds, such as my.py:Mine, but found my.py"),
        (["--method", "trades"], "--method takes FILE:CLASS, such as my.py:Mine, but found trades"),
        (
            ["--method", "my.py:Mine", "my.py:Mine", "other.py:Mine"],
            "two methods have the key 'mine', my.py:Mine and o",
        ),
        (["--against", "pgd_at"], "--against names what a method of your own is compared with"),
        (["--method", "my.py:Mine", "--against", "trade"], "did you mean trades?"),
        (["--method", "my.py:Mine", "--against", "trades,trades"], "against holds every value once"),
        (["--dataset", "digit"], "did you mean digits?"),
        (["--network", "digits_cn"], "did you mean digits_cnn?"),
        (["--network", "my.py"], "such as my.py:build"),
        (["--dataset", "data.py:my_data", "--network", "small_cnn"], "small_cnn needs images of at least 16x16 pixels"),
        (["--dataset", "data.py:digits"], "'digits' is the name of a data set of the project"),
    ],
)
def test_a_mistake_in_the_words_is_told_before_anything_is_written(words, says, atbench, capsys):
    write(METHOD)
    write(METHOD, "other.py")
    write(DATA + "\n\ndigits = my_data\n", "data.py")
    assert atbench(*run(*words)) == 2
    assert says in capsys.readouterr().err
    assert not Path("report").exists()


def test_a_data_set_of_fewer_classes_than_autoattack_needs_is_told_so_before_anything_is_trained(atbench, capsys):
    write(DATA.replace("% 4", "% 3"))
    assert atbench("run", "digits-common", "--dataset", "my.py:my_data") == 2
    assert "AutoAttack needs at least 4 classes (targeted DLR), but my_data has 3" in capsys.readouterr().err
