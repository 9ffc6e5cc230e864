"""The Inception network of 5 December 2015, which defines FID, for its published weights.

It differs from the Inception v3 of model libraries: averages exclude the padding, the last block
uses a maximum instead of an average, there are 1,008 classes, and images are resized as in
TensorFlow 1.

Source: Szegedy et al., arXiv 1512.00567, for the blocks. Names and shapes of the tensors are those
of the weights of pytorch-fid and torch-fidelity, which were converted from the TensorFlow graph.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn
from torch.nn import functional

from var_hf.provenance import sha256

INPUT_SIZE = 299
NUM_CLASSES = 1008
WEIGHTS_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
#: Digest of that file, which equals pytorch-fid's pt_inception-2015-12-05-6726825d.pth.
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
#: Channels of one 17 x 17 map that form the features of sFID: 2,023 numbers.
SPATIAL_CHANNELS = 7


class Convolution(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self,
        channels: int,
        width: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


#: Name, width, kernel, stride, padding.
Step = tuple[str, int, int | tuple[int, int], int, int | tuple[int, int]]
_1X7, _7X1, _1X3, _3X1 = (1, 7), (7, 1), (1, 3), (3, 1)


def average(x: Tensor) -> Tensor:
    """Average pooling over 3 x 3 at the same size; excludes the padding."""
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def maximum(x: Tensor) -> Tensor:
    """Max pooling over 3 x 3 at the same size."""
    return functional.max_pool2d(x, 3, stride=1, padding=1)


def halve(x: Tensor) -> Tensor:
    """Max pooling over 3 x 3 at half the size."""
    return functional.max_pool2d(x, 3, stride=2)


class Block(nn.Module):
    """Parallel branches whose channels are concatenated.

    Args:
        channels: Channels of the input.
        branches: The convolutions of each branch. A name that ends in ``a`` forks: the next
            convolution, whose name ends in ``b``, has the same input, and both results are
            concatenated.
        pool: Pooling of the last branch.
        pool_width: Channels of the convolution ``branch_pool`` after the pooling; 0 for none.
    """

    def __init__(
        self,
        channels: int,
        branches: Sequence[Sequence[Step]],
        pool: Callable[[Tensor], Tensor],
        pool_width: int,
    ):
        super().__init__()
        self.branches, self.pool = branches, pool
        for branch in branches:
            width = channels
            for name, out, kernel, stride, padding in branch:
                self.add_module(name, Convolution(width, out, kernel, stride, padding))
                width = width if name.endswith("a") else out
        self.branch_pool = Convolution(channels, pool_width, 1) if pool_width else None

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for branch in self.branches:
            y = x
            for name, *_ in branch:
                if name.endswith("a"):
                    fork = y
                result = self.get_submodule(name)(fork if name.endswith("b") else y)
                y = torch.cat([y, result], dim=1) if name.endswith("b") else result
            outputs.append(y)
        pooled = self.pool(x)
        outputs.append(pooled if self.branch_pool is None else self.branch_pool(pooled))
        return torch.cat(outputs, dim=1)


def _block_a(channels: int, pool_width: int) -> Block:
    branches: list[list[Step]] = [
        [("branch1x1", 64, 1, 1, 0)],
        [("branch5x5_1", 48, 1, 1, 0), ("branch5x5_2", 64, 5, 1, 2)],
        [
            ("branch3x3dbl_1", 64, 1, 1, 0),
            ("branch3x3dbl_2", 96, 3, 1, 1),
            ("branch3x3dbl_3", 96, 3, 1, 1),
        ],
    ]
    return Block(channels, branches, average, pool_width)


def _block_b(channels: int) -> Block:
    branches: list[list[Step]] = [
        [("branch3x3", 384, 3, 2, 0)],
        [
            ("branch3x3dbl_1", 64, 1, 1, 0),
            ("branch3x3dbl_2", 96, 3, 1, 1),
            ("branch3x3dbl_3", 96, 3, 2, 0),
        ],
    ]
    return Block(channels, branches, halve, 0)


def _block_c(channels: int, width: int) -> Block:
    branches: list[list[Step]] = [
        [("branch1x1", 192, 1, 1, 0)],
        [
            ("branch7x7_1", width, 1, 1, 0),
            ("branch7x7_2", width, _1X7, 1, (0, 3)),
            ("branch7x7_3", 192, _7X1, 1, (3, 0)),
        ],
        [
            ("branch7x7dbl_1", width, 1, 1, 0),
            ("branch7x7dbl_2", width, _7X1, 1, (3, 0)),
            ("branch7x7dbl_3", width, _1X7, 1, (0, 3)),
            ("branch7x7dbl_4", width, _7X1, 1, (3, 0)),
            ("branch7x7dbl_5", 192, _1X7, 1, (0, 3)),
        ],
    ]
    return Block(channels, branches, average, 192)


def _block_d(channels: int) -> Block:
    branches: list[list[Step]] = [
        [("branch3x3_1", 192, 1, 1, 0), ("branch3x3_2", 320, 3, 2, 0)],
        [
            ("branch7x7x3_1", 192, 1, 1, 0),
            ("branch7x7x3_2", 192, _1X7, 1, (0, 3)),
            ("branch7x7x3_3", 192, _7X1, 1, (3, 0)),
            ("branch7x7x3_4", 192, 3, 2, 0),
        ],
    ]
    return Block(channels, branches, halve, 0)


def _block_e(channels: int, pool: Callable[[Tensor], Tensor]) -> Block:
    branches: list[list[Step]] = [
        [("branch1x1", 320, 1, 1, 0)],
        [
            ("branch3x3_1", 384, 1, 1, 0),
            ("branch3x3_2a", 384, _1X3, 1, (0, 1)),
            ("branch3x3_2b", 384, _3X1, 1, (1, 0)),
        ],
        [
            ("branch3x3dbl_1", 448, 1, 1, 0),
            ("branch3x3dbl_2", 384, 3, 1, 1),
            ("branch3x3dbl_3a", 384, _1X3, 1, (0, 1)),
            ("branch3x3dbl_3b", 384, _3X1, 1, (1, 0)),
        ],
    ]
    return Block(channels, branches, pool, 192)


class Inception(nn.Module):
    """Computes the features of the published evaluators.

    Load the weights with `load_inception`. Features of random weights have no meaning.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3)
        self.Mixed_5b = _block_a(192, 32)
        self.Mixed_5c = _block_a(256, 64)
        self.Mixed_5d = _block_a(288, 64)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b = _block_c(768, 128)
        self.Mixed_6c = _block_c(768, 160)
        self.Mixed_6d = _block_c(768, 160)
        self.Mixed_6e = _block_c(768, 192)
        self.Mixed_7a = _block_d(768)
        self.Mixed_7b = _block_e(1280, average)
        self.Mixed_7c = _block_e(2048, maximum)
        self.fc = nn.Linear(2048, NUM_CLASSES)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the features of images.

        Args:
            pixels: uint8 ``(B, 3, H, W)``.

        Returns:
            The features of FID ``(B, 2048)``; the features of sFID ``(B, 2023)``, seven channels of
            a map of 17 x 17, row by row with the channels innermost; and logits ``(B, 1008)``
            without the bias, as the evaluators use them for the Inception Score.
        """
        x = enlarge(pixels.to(self.fc.weight.dtype), INPUT_SIZE)
        x = (x - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # (B, 64, 147, 147)
        x = halve(x)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))  # (B, 192, 71, 71)
        x = halve(x)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))  # (B, 288, 35, 35)
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))  # (B, 768, 17, 17)
        # TensorFlow's mixed_6/conv is the first branch of Mixed_6d.
        spatial = self.Mixed_6d.get_submodule("branch1x1")(x)[:, :SPATIAL_CHANNELS]
        x = self.Mixed_6e(self.Mixed_6d(x))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # (B, 2048, 8, 8)
        pooled = x.mean(dim=(2, 3))
        return pooled, spatial.permute(0, 2, 3, 1).flatten(1), pooled @ self.fc.weight.T


def enlarge(images: Tensor, size: int) -> Tensor:
    """Resize ``(B, C, H, W)`` bilinearly to a square, with the pixel positions of TensorFlow 1.

    Pixel i of the result is at ``i * H / size`` in the image. This is up to half a pixel away from
    the position in other libraries. Reducing an image skips pixels.
    """
    for dim in (2, 3):
        length = images.shape[dim]
        # The graph's precision: another one would round the positions differently.
        places = torch.arange(size, device=images.device, dtype=torch.float32) * torch.tensor(
            length / size, dtype=torch.float32
        )
        low = places.long()
        weight = (places - low).to(images.dtype)
        weight = weight if dim == 3 else weight[:, None]
        lower = images.index_select(dim, low)
        upper = images.index_select(dim, (low + 1).clamp(max=length - 1))
        images = lower + (upper - lower) * weight
    return images


def load_inception(
    file: str | Path, *, sha256_of_weights: str | None = WEIGHTS_SHA256
) -> Inception:
    """Load the network with the published weights.

    Args:
        file: The weights from `WEIGHTS_URL`.
        sha256_of_weights: Required digest; ``None`` accepts any weights of the same layout.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The digest differs, or the file contains no state dict of this network.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(
            f"There are no Inception weights at {file}. Fetch {WEIGHTS_URL} and name the file."
        )
    if sha256_of_weights is not None and (found := sha256(file)) != sha256_of_weights:
        raise ValueError(
            f"{file} holds other weights than the published evaluators use: its SHA-256 is "
            f"{found}, theirs "
            f"{sha256_of_weights}. Numbers made with others cannot be compared. Fetch "
            f"{WEIGHTS_URL}."
        )
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"{file} cannot be read as weights: {error}") from error
    with torch.device("meta"):
        model = Inception()
    try:
        model.load_state_dict(weights, assign=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} holds no weights of the Inception network of FID: {error}"
        ) from error
    return model.eval().requires_grad_(False)
