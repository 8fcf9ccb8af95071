"""Small networks whose behaviour under attack is known, and the third-party ones that others trained."""

import torch
from torch import Tensor, nn


class Linear(nn.Module):
    """Logits ``W x + b`` of the flattened image: every attack on it has a closed form."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(len(weight), dtype=weight.dtype) if bias is None else bias)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias

    def linf_radius(self, x: Tensor, y: Tensor) -> Tensor:
        """The smallest Linf radius that reaches another class, pixel range aside."""
        return self._radius(x, y, 1)

    def l2_radius(self, x: Tensor, y: Tensor) -> Tensor:
        """The smallest L2 radius that reaches another class, pixel range aside."""
        return self._radius(x, y, 2)

    @torch.no_grad()
    def _radius(self, x: Tensor, y: Tensor, dual: int) -> Tensor:
        logits = self(x)
        lead = logits.gather(1, y[:, None]) - logits
        slope = torch.linalg.vector_norm(self.weight[y][:, None] - self.weight[None], dual, dim=2)
        return torch.where(slope > 0, lead / slope, torch.inf).amin(1).clamp(min=0)


def linear(classes: int = 10, size: int = 64, seed: int = 0, dtype: torch.dtype = torch.float32) -> Linear:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, size, generator=draw, dtype=torch.float64) / size**0.5
    return Linear(weight.to(dtype)).eval()


class Constant(nn.Module):
    """The same logits for every image, joined to it by a graph with gradient zero."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits + 0 * x.flatten(1).sum(1, keepdim=True)


class Returning(nn.Module):
    """Gives back whatever ``answer`` makes of the images."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor):
        return self.answer(x)


class Averaged(nn.Module):
    """The mean of its members' logits; whoever counts finds them in ``members``."""

    def __init__(self, members) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        return sum(member(x) for member in self.members) / len(self.members)


def curved(classes: int = 10, channels: int = 1, seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    """A convolutional network with BatchNorm on 8x8 images: no closed form, but everything that can leave a trace."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(4 * 64, classes),
        ).eval()


def images(n: int = 16, channels: int = 1, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform 8x8 images in [0, 1]."""
    return torch.rand(n, channels, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class Normalised(nn.Sequential):
    """Subtract a mean and divide by a deviation per channel, then run ``network``."""

    def __init__(self, network: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__(network)
        self.mean, self.std = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - self.mean) / self.std)


class Block(nn.Module):
    """A residual block without batch norm, as in alpha-beta-CROWN's ResNet-4B."""

    def __init__(self, inward: int, outward: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inward, outward, 3, stride, 1)
        self.conv2 = nn.Conv2d(outward, outward, 3, 1, 1)
        self.shortcut = nn.Sequential()
        if stride != 1 or inward != outward:
            self.shortcut = nn.Sequential(nn.Conv2d(inward, outward, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv2(torch.relu(self.conv1(x))) + self.shortcut(x))


def resnet4b() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1),
        nn.ReLU(),
        Block(16, 32, 2),
        Block(32, 32, 1),
        Block(32, 32, 2),
        Block(32, 32, 1),
        nn.Flatten(),
        nn.Linear(512, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )
