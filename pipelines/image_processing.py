"""Conversion of images of any type, size and aspect ratio to the model's P x P pixels, and back."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from var_hf.image_files import on_ground
from var_hf.modeling_vqvae import MultiScaleVQVAE

SingleImage = Image.Image | np.ndarray | Tensor
ImageInput = SingleImage | Sequence[SingleImage]

FORMS = (
    "PIL images; numpy arrays (H, W, {c}) or (B, H, W, {c}); tensors ({c}, H, W) or (B, {c}, H, "
    "W); numbers in [0, 1], or in 0..255 as uint8"
)
LARGEST_COLOUR_SPREAD = 0.1  # between the channels of a mask; JPEG alone makes a few percent


def read_images(images: ImageInput) -> list[Tensor]:
    """Images as one float32 tensor ``(3, H, W)`` in [0, 1] each; they may differ in size.

    Transparent images are put on white. The EXIF orientation is applied.

    Raises:
        ValueError: An image has no pixels, another number of channels, or numbers outside [0, 1].
    """
    read = []
    for image in _singles(images, "image", channels=3):
        if isinstance(image, Image.Image):
            image = _without_alpha(image, "image", ground="white").convert("RGB")
        tensor = _tensor(image, "image")
        if len(tensor) != 3:
            raise ValueError(
                f"image must have 3 channels. Got {len(tensor)}, in the shape "
                f"{tuple(tensor.shape)} (channels first). Pass {FORMS.format(c=3)}."
            )
        read.append(tensor)
    return read


def read_masks(masks: ImageInput) -> list[Tensor]:
    """Masks as one float32 tensor ``(1, H, W)`` in [0, 1] each, 1 = redraw.

    Three equal channels count as one. Transparent pixels count as black, so unpainted regions are
    kept.

    Raises:
        ValueError: A mask has no pixels, colours, another number of channels, or numbers outside
            [0, 1].
    """
    read = []
    for mask in _singles(masks, "mask_image", channels=1):
        if isinstance(mask, Image.Image):
            mask = _without_alpha(mask, "mask_image", ground="black")
            mask = mask.convert("L" if mask.mode in ("1", "L") else "RGB")
        tensor = _tensor(mask, "mask_image")
        if len(tensor) not in (1, 3):
            raise ValueError(
                f"mask_image must have one channel. Got {len(tensor)}, in the shape "
                f"{tuple(tensor.shape)} (channels first). Pass {FORMS.format(c=1)}."
            )
        spread = (tensor.amax(dim=0) - tensor.amin(dim=0)).max()
        if spread > LARGEST_COLOUR_SPREAD:
            raise ValueError(
                "mask_image has colours. A mask is black where the image is kept and white where "
                "it is redrawn; pass one with a single channel."
            )
        read.append(tensor.mean(dim=0, keepdim=True))
    return read


def _singles(images: object, what: str, channels: int) -> list[SingleImage]:
    """One image, a batch or a list as a list of single images."""
    if isinstance(images, Image.Image):
        return [images]
    if isinstance(images, np.ndarray | Tensor):
        return list(images) if images.ndim == 4 else [images]
    if not isinstance(images, Sequence) or isinstance(images, str | bytes):
        hint = " Open files with PIL.Image.open." if isinstance(images, str | bytes) else ""
        raise ValueError(
            f"{what} must be an image or a list of images: {FORMS.format(c=channels)}. "
            f"Got {type(images).__name__}.{hint}"
        )
    if not images:
        raise ValueError(f"{what} is an empty list. Pass at least one image.")
    return [single for image in images for single in _singles(image, what, channels)]


def _without_alpha(image: Image.Image, what: str, ground: str) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"{what} has the PIL mode {image.mode!r}, numbers of unknown range. "
            "Convert it to 8 bits first, or pass an array of floats in [0, 1]."
        )
    return on_ground(image, ground)


def _tensor(image: SingleImage, what: str) -> Tensor:
    """Any single image as float32 ``(C, H, W)`` on the CPU, checked to lie in [0, 1]."""
    if isinstance(image, Tensor):
        tensor = image.detach().cpu()
    else:
        # np.array copies: arrays that PIL hands out are read-only, which torch warns about.
        tensor = torch.from_numpy(np.array(image))
        tensor = tensor.movedim(-1, 0) if tensor.ndim == 3 else tensor
    tensor = tensor[None] if tensor.ndim == 2 else tensor
    if tensor.ndim != 3 or 0 in tensor.shape:
        size = image.size if isinstance(image, Image.Image) else image.shape
        kind = "without pixels" if 0 in tensor.shape else "that is no image"
        raise ValueError(f"{what} holds something {kind}: its shape is {tuple(size)}.")
    tensor = tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor.float()
    low, high = tensor.min().item(), tensor.max().item()
    # Resampling and half precision overshoot a little; "not" catches NaN as well.
    if not (low >= -0.01 and high <= 1.01):
        raise ValueError(
            f"{what} must hold numbers in [0, 1], or in 0..255 as uint8. Got [{low:.4g}, "
            f"{high:.4g}]."
        )
    return tensor.clamp(0, 1)


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Resize ``(C, H, W)`` in [0, 1], bicubic and without aliasing."""
    if image.shape[1:] == (height, width):
        return image
    resized = functional.interpolate(
        image[None], size=(height, width), mode="bicubic", antialias=True
    )
    return resized[0].clamp(0, 1)


@torch.no_grad()
def encode(vqvae: MultiScaleVQVAE, squares: Tensor) -> list[Tensor]:
    """Token maps, S times ``(B, T)``, of images ``(B, 3, P, P)`` in [0, 1]."""
    return vqvae.encode(squares.to(vqvae.device) * 2 - 1).token_maps


def cover(image: Tensor, side: int) -> Tensor:
    """Centre-crop an image ``(C, H, W)`` to a square and resize it to ``(C, P, P)``, as training
    does.
    """
    _, height, width = image.shape
    shorter = min(height, width)
    top, left = (height - shorter) // 2, (width - shorter) // 2
    return resize(image[:, top : top + shorter, left : left + shorter], side, side)


@dataclass(frozen=True)
class Frame:
    """Placement of an image of another aspect ratio in the model's square: scaled to fit, centred,
    edges repeated.

    Attributes:
        height, width: Size of the image in pixels.
        side: Side P of the square in pixels.
    """

    height: int
    width: int
    side: int

    @property
    def inner_size(self) -> tuple[int, int]:
        """Height and width of the image inside the square, in pixels; at least 1."""
        longer = max(self.height, self.width)
        return (
            max(1, round(self.side * self.height / longer)),
            max(1, round(self.side * self.width / longer)),
        )

    @property
    def corner(self) -> tuple[int, int]:
        """Top and left of the image inside the square."""
        height, width = self.inner_size
        return (self.side - height) // 2, (self.side - width) // 2

    def enter(self, image: Tensor) -> Tensor:
        """An image ``(C, H, W)`` in the square, ``(C, P, P)``."""
        return self._continue_edges(resize(image, *self.inner_size))

    def enter_mask(self, mask: Tensor) -> Tensor:
        """A mask ``(1, H, W)`` in the square, ``(1, P, P)``: averaged, so that it keeps its
        area.
        """
        if mask.shape[1:] != self.inner_size:
            mask = functional.interpolate(mask[None], size=self.inner_size, mode="area")[0]
        return self._continue_edges(mask)

    def _continue_edges(self, inner: Tensor) -> Tensor:
        top, left = self.corner
        height, width = self.inner_size
        rest = (left, self.side - width - left, top, self.side - height - top)
        return functional.pad(inner[None], rest, mode="replicate")[0]

    def leave(self, square: Tensor) -> Tensor:
        """The image ``(C, H, W)`` that lies in a square ``(C, P, P)``, in its own size."""
        top, left = self.corner
        height, width = self.inner_size
        return resize(square[:, top : top + height, left : left + width], self.height, self.width)


def feather(mask: Tensor, radius: int) -> Tensor:
    """Let a mask ``(1, P, P)`` fall to 0 linearly over 2 * radius pixels around it, and stay 1
    within.
    """
    kernel = 2 * radius + 1
    wide = functional.max_pool2d(mask[None], kernel, stride=1, padding=radius)
    wide = functional.pad(wide, (radius,) * 4, mode="replicate")
    return functional.avg_pool2d(wide, kernel, stride=1)[0].clamp(0, 1)


def window_around(mask: Tensor, margin: int) -> tuple[slice, slice]:
    """Rows and columns of a square window around the marked region of a mask ``(1, H, W)``, inside
    the image.

    Args:
        mask: Where it is above 0, the image is redrawn. An empty mask gives the whole image.
        margin: Pixels that the window shows beyond the marked part, where the image has them.
    """
    marked = mask[0] > 0
    if not marked.any():
        return slice(0, mask.shape[1]), slice(0, mask.shape[2])
    spans = []
    for axis in (1, 0):
        places = marked.any(dim=axis).nonzero()
        spans.append((int(places.min()) - margin, int(places.max()) + 1 + margin))
    side = max(stop - start for start, stop in spans)
    windows = []
    for (start, stop), length in zip(spans, mask.shape[1:], strict=True):
        start = (start + stop - side) // 2
        start = max(0, min(start, length - side))
        windows.append(slice(start, min(length, start + side)))
    return windows[0], windows[1]
