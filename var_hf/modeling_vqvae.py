"""The multi-scale VQVAE: pixels to latents to token maps, and back.

Encoder and decoder are the convolutional networks of latent diffusion (arXiv 2112.10752), with
attention at the coarsest level. The tensor names are those of that family of checkpoints.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from os import PathLike
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import AutoencoderMixin, DecoderOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from torch.nn import functional

from .checked_model import CheckedModel
from .configuration_var import TOKEN_MAP_SIZES_256, check_token_map_sizes, refiner_table
from .quantization import MultiScaleQuantizer

# Number of 256 x 256 images to decode at a time on a GPU: enough to fill it, at bounded memory.
DECODED_AT_A_TIME = 16
# Numbers in the encoder's first activation on a CPU: with more, its layers wait for the memory.
ENCODED_AT_A_TIME = 2**21


@dataclass
class MultiScaleVQVAEOutput(BaseOutput):
    """Output of `MultiScaleVQVAE.encode`.

    Attributes:
        token_maps: S token maps ``(B, T)``, int64, coarse to fine.
        latents: The latents of those tokens, ``(B, Z, F, F)``, float32.
        features: The encoder's features before quantisation, ``(B, Z, F, F)``.
    """

    token_maps: list[Tensor]
    latents: Tensor
    features: Tensor


class ResnetBlock(nn.Module):
    """Residual block of two normalised 3 x 3 convolutions."""

    def __init__(self, in_channels: int, out_channels: int, num_groups: int, eps: float):
        super().__init__()
        self.norm1 = nn.GroupNorm(num_groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.norm2 = nn.GroupNorm(num_groups, out_channels, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut: nn.Module = nn.Conv2d(in_channels, out_channels, kernel_size=1)
        else:
            self.nin_shortcut = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        # One name for all steps, so that each input is freed before the next step allocates.
        h = functional.silu(self.norm1(x), inplace=True)
        h = self.conv1(h)
        h = functional.silu(self.norm2(h), inplace=True)
        h = self.conv2(h)
        h += self.nin_shortcut(x)
        return h


class SpatialAttention(nn.Module):
    """Single-head self-attention between the positions of a feature map."""

    def __init__(self, channels: int, num_groups: int, eps: float):
        super().__init__()
        self.norm = nn.GroupNorm(num_groups, channels, eps)
        self.qkv = nn.Conv2d(channels, 3 * channels, kernel_size=1)
        self.proj_out = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1)  # (B, 1, h * w, 3 * C)
        h = functional.scaled_dot_product_attention(*qkv.chunk(3, dim=-1))  # (B, 1, h * w, C)
        return x + self.proj_out(h.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    """Halves the side with a strided convolution, with padding at the right and bottom only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Maps ``(B, C, H, W)`` to ``(B, C, 2 * H, 2 * W)``: nearest neighbour, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks of one resolution. `attn` is empty or holds one attention per block."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: int,
        attention: bool,
        num_groups: int,
        eps: float,
    ):
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(in_channels if i == 0 else out_channels, out_channels, num_groups, eps)
            for i in range(num_blocks)
        )
        self.attn = nn.ModuleList(
            SpatialAttention(out_channels, num_groups, eps)
            for _ in range(num_blocks if attention else 0)
        )

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        return x


class Middle(nn.Module):
    """Block, attention, block at the coarsest resolution."""

    def __init__(self, channels: int, num_groups: int, eps: float):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, num_groups, eps)
        self.attn_1 = SpatialAttention(channels, num_groups, eps)
        self.block_2 = ResnetBlock(channels, channels, num_groups, eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Maps images ``(B, 3, P, P)`` to features ``(B, Z, F, F)``. Levels go from fine to coarse."""

    def __init__(
        self,
        in_channels: int,
        latent_channels: int,
        level_channels: Sequence[int],
        num_res_blocks: int,
        num_groups: int,
        eps: float,
    ):
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, level_channels[0], kernel_size=3, padding=1)
        last = len(level_channels) - 1
        self.down = nn.ModuleList()
        for i, channels in enumerate(level_channels):
            previous = level_channels[0] if i == 0 else level_channels[i - 1]
            level = Level(previous, channels, num_res_blocks, i == last, num_groups, eps)
            level.downsample = Downsample(channels) if i < last else nn.Identity()
            self.down.append(level)
        self.mid = Middle(level_channels[-1], num_groups, eps)
        self.norm_out = nn.GroupNorm(num_groups, level_channels[-1], eps)
        self.conv_out = nn.Conv2d(level_channels[-1], latent_channels, kernel_size=3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        h = self.conv_in(images)
        for level in self.down:
            h = level.downsample(level(h))  # type: ignore[operator]  # a ModuleList forgets the class
        return project_out(self.mid(h), self.norm_out, self.conv_out).to(images.dtype)


class Decoder(nn.Module):
    """Maps latents ``(B, Z, F, F)`` to images ``(B, 3, P, P)``. `up[0]` is the finest level."""

    def __init__(
        self,
        out_channels: int,
        latent_channels: int,
        level_channels: Sequence[int],
        num_res_blocks: int,
        num_groups: int,
        eps: float,
    ):
        super().__init__()
        coarsest = level_channels[-1]
        self.conv_in = nn.Conv2d(latent_channels, coarsest, kernel_size=3, padding=1)
        self.mid = Middle(coarsest, num_groups, eps)
        last = len(level_channels) - 1
        self.up = nn.ModuleList()
        for i, channels in enumerate(level_channels):
            previous = coarsest if i == last else level_channels[i + 1]
            level = Level(previous, channels, num_res_blocks + 1, i == last, num_groups, eps)
            level.upsample = Upsample(channels) if i > 0 else nn.Identity()
            self.up.append(level)
        self.norm_out = nn.GroupNorm(num_groups, level_channels[0], eps)
        self.conv_out = nn.Conv2d(level_channels[0], out_channels, kernel_size=3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        h = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            h = level.upsample(level(h))  # type: ignore[operator]  # a ModuleList forgets the class
        return project_out(h, self.norm_out, self.conv_out)


def project_out(h: Tensor, norm: nn.GroupNorm, conv: nn.Conv2d) -> Tensor:
    """Apply the last norm and convolution of encoder or decoder, in the dtype of their weights.

    These weights are float32 even in half precision: no later layer corrects their rounding, and
    they are a thousandth of the work.
    """
    return conv(functional.silu(norm(h.to(conv.weight.dtype)), inplace=True))


def decoded_at_a_time(device_type: str, image_size: int) -> int:
    """Return the number of images to decode at a time. On a CPU, more than one only costs memory.

    Args:
        device_type: ``"cpu"``, ``"cuda"`` and so on.
        image_size: Side P of the images in pixels.
    """
    if device_type == "cpu":
        return 1
    return max(1, DECODED_AT_A_TIME * 256**2 // image_size**2)


def checked_refiners(values: Mapping[str, Any]) -> tuple[int, ...]:
    """Check all values of a `MultiScaleVQVAE`'s config, and return the refiner of each scale.

    Raises:
        ValueError: A value has a wrong type or is out of range, or the values are inconsistent.
    """
    from .schema import VQVAE, check_values

    check_values(values, VQVAE, "MultiScaleVQVAE")
    num_scales = len(check_token_map_sizes(values["token_map_sizes"]))
    base, groups = values["base_channels"], values["norm_num_groups"]
    if any(base * multiplier % groups for multiplier in (1, *values["channel_multipliers"])):
        raise ValueError(
            f"base_channels ({base}) times each of channel_multipliers "
            f"({values['channel_multipliers']}) must be a multiple of norm_num_groups ({groups})."
        )
    if values["refiner_mix"] == 0:
        return ()
    table = values["refiner_of_scale"]
    if table is None:
        return refiner_table(num_scales, values["refiner_sharing"])
    if len(table) != num_scales:
        raise ValueError(
            f"refiner_of_scale names {len(table)} scales but token_map_sizes has {num_scales}. "
            "Leave it out to have it computed."
        )
    if max(table) >= (limit := values["refiner_sharing"] or num_scales):
        raise ValueError(
            f"refiner_of_scale must name refiners from 0 to {limit - 1}. Got {list(table)}; leave "
            "it out to have it computed."
        )
    return tuple(table)


class MultiScaleVQVAE(CheckedModel, ModelMixin, AutoencoderMixin, ConfigMixin):
    r"""
    Multi-scale VQVAE: it converts pixels to token maps and back.

    Args:
        in_channels (`int`, *optional*, defaults to 3): Channels of the images.
        base_channels (`int`, *optional*, defaults to 160): Width of the finest level.
        channel_multipliers (`tuple[int, ...]`, *optional*, defaults to `(1, 1, 2, 2, 4)`):
            Width of each level in units of `base_channels`, fine to coarse. Each further level
            halves the side.
        num_res_blocks (`int`, *optional*, defaults to 2):
            Blocks per encoder level. The decoder has one more.
        latent_channels (`int`, *optional*, defaults to 32): Channels Z of the latents.
        codebook_size (`int`, *optional*, defaults to 4096): Number of codes V.
        token_map_sizes (`tuple[int, ...]`, *optional*, defaults to the 256 px schedule):
            Side of each token map, coarse to fine. The last is the side F of the latents.
        refiner_sharing (`int`, *optional*, defaults to 4):
            Number of refiners; 0 is one per scale (the release's `share_quant_resi`).
        refiner_of_scale (`tuple[int, ...]`, *optional*):
            Index of the refiner of each scale. The default is [`refiner_table`], which is stored.
        refiner_mix (`float`, *optional*, defaults to 0.5):
            Share of the convolution in a refiner (the release's `quant_resi`); 0 means no refiners.
        norm_num_groups (`int`, *optional*, defaults to 32): Groups of the group norms.
        norm_eps (`float`, *optional*, defaults to 1e-6): Added to the variance in the group norms.
        commitment_weight (`float`, *optional*, defaults to 0.25):
            Weight of the commitment loss in training.

    The defaults are those of the published `vae_ch160v4096z32.pth`.

    Raises:
        ValueError: A value has a wrong type or is out of range, `token_map_sizes` is not a
            schedule, or `refiner_of_scale` does not match it.
    """

    component = "vqvae"
    _supports_group_offloading = False  # the code lookup is not part of a submodule's forward
    _keep_in_fp32_modules = ["quantizer", "norm_out", "conv_out"]
    _no_split_modules = ["Level", "Middle"]
    _skip_layerwise_casting_patterns = ["quantizer", "norm", "conv_out"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        base_channels: int = 160,
        channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        latent_channels: int = 32,
        codebook_size: int = 4096,
        token_map_sizes: tuple[int, ...] = TOKEN_MAP_SIZES_256,
        refiner_sharing: int = 4,
        refiner_of_scale: tuple[int, ...] | None = None,
        refiner_mix: float = 0.5,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        commitment_weight: float = 0.25,
    ):
        super().__init__()
        refiner_of_scale = checked_refiners(dict(self.config))
        token_map_sizes = check_token_map_sizes(token_map_sizes)
        self.register_to_config(token_map_sizes=token_map_sizes, refiner_of_scale=refiner_of_scale)

        level_channels = [base_channels * multiplier for multiplier in channel_multipliers]
        sizes = (latent_channels, level_channels, num_res_blocks, norm_num_groups, norm_eps)
        self.encoder = Encoder(in_channels, *sizes)
        self.decoder = Decoder(in_channels, *sizes)
        self.quant_conv = nn.Conv2d(latent_channels, latent_channels, kernel_size=3, padding=1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, kernel_size=3, padding=1)
        self.quantizer = MultiScaleQuantizer(
            codebook_size, latent_channels, token_map_sizes, refiner_of_scale, refiner_mix
        )
        self.use_slicing = False

    @property
    def stride(self) -> int:
        """Side of one latent in pixels; 16 in the release."""
        return 2 ** (len(self.config.channel_multipliers) - 1)

    @property
    def image_size(self) -> int:
        """Side P of the images in pixels."""
        return self.stride * self.quantizer.token_map_sizes[-1]

    def _check_images(self, images: Tensor) -> None:
        expected = (self.config.in_channels, self.image_size, self.image_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"images must have shape (B, {', '.join(map(str, expected))}): token maps "
                f"{self.quantizer.token_map_sizes} at {self.stride} pixels per token. "
                f"Got {tuple(images.shape)}; resize or crop the images first."
            )

    def _encode_features(self, images: Tensor) -> Tensor:
        # Channels-last format is faster: here on a CPU, when decoding on every device.
        images = images.to(self.encoder.conv_in.weight.dtype, memory_format=torch.channels_last)
        return self.quant_conv(self.encoder(images)).float().contiguous()

    def _decode_latents(self, latents: Tensor) -> Tensor:
        latents = latents.to(self.post_quant_conv.weight.dtype, memory_format=torch.channels_last)
        return self.decoder(self.post_quant_conv(latents)).clamp(-1, 1).contiguous()

    @apply_forward_hook
    def encode(self, images: Tensor, return_dict: bool = True) -> MultiScaleVQVAEOutput | tuple:
        """Encode images as token maps.

        Args:
            images: ``(B, 3, P, P)`` with values in [-1, 1].
            return_dict: Return a [`MultiScaleVQVAEOutput`], else the tuple
                ``(token_maps, latents, features)``.

        Raises:
            ValueError: The images have another shape.
        """
        self._check_images(images)
        few = max(1, ENCODED_AT_A_TIME // (self.config.base_channels * self.image_size**2))
        chunk = few if images.device.type == "cpu" else len(images)
        chunk = 1 if self.use_slicing else chunk
        features = torch.cat([self._encode_features(part) for part in images.split(chunk)])
        token_maps, latents = self.quantizer.encode(features)
        if not return_dict:
            return token_maps, latents, features
        return MultiScaleVQVAEOutput(token_maps=token_maps, latents=latents, features=features)

    @apply_forward_hook
    def decode_latents(self, latents: Tensor, return_dict: bool = True) -> DecoderOutput | tuple:
        """Decode latents ``(B, Z, F, F)`` to images ``(B, 3, P, P)`` in [-1, 1].

        The dtype is that of the last layer: float32 as loaded. Large batches are decoded in chunks
        (one by one on a CPU and with `enable_slicing`), which bounds the memory.
        """
        chunk = 1 if self.use_slicing else decoded_at_a_time(latents.device.type, self.image_size)
        sample = torch.cat([self._decode_latents(part) for part in latents.split(chunk)])
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    @apply_forward_hook
    def decode(
        self, token_maps: Sequence[Tensor], return_dict: bool = True
    ) -> DecoderOutput | tuple:
        """Decode S token maps ``(B, T)`` to images ``(B, 3, P, P)`` in [-1, 1].

        The dtype is that of the last layer: float32 as loaded.

        Raises:
            ValueError: The maps do not match the schedule.
        """
        return self.decode_latents(self.quantizer.decode(token_maps), return_dict=return_dict)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Encode and decode images ``(B, 3, P, P)`` in [-1, 1]."""
        return self.decode_latents(self.encode(images).latents).sample

    def forward(self, sample: Tensor, return_dict: bool = True) -> DecoderOutput | tuple:
        """Compute `reconstruct`, with the signature of diffusers' autoencoders."""
        return self.decode_latents(self.encode(sample).latents, return_dict=return_dict)

    @classmethod
    def stored_shapes(cls, values: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Return every tensor of a saved model with its shape, from its ``config.json``."""
        from .conversion import vqvae_shapes
        from .schema import VQVAE

        parameters = signature(cls.__init__).parameters
        own = {name: values.get(name, parameters[name].default) for name in VQVAE}
        return vqvae_shapes({**own, "refiner_of_scale": checked_refiners(own)})

    @classmethod
    def from_original(
        cls, file: str | PathLike[str] | dict[str, Tensor], **overrides: Any
    ) -> "MultiScaleVQVAE":
        """Load a VQVAE in the layout of the VAR release.

        Args:
            file: Path of `vae_ch160v4096z32.pth` or of a trainer checkpoint with a VQVAE, or a
                state dict.
            **overrides: Config values that the tensors do not determine, with their defaults:
                `token_map_sizes` (the 256 px schedule), `refiner_mix` (0.5), `norm_num_groups`
                (32), `norm_eps` (1e-6).

        Raises:
            ValueError: The file is not a checkpoint, is not a VQVAE, or has wrong tensors.
        """
        from .conversion import convert_vqvae, read_original

        state_dict = file if isinstance(file, dict) else read_original(file, part="vqvae")
        source = getattr(file, "path", None) if isinstance(file, dict) else file  # errors name it
        state_dict, config = convert_vqvae(state_dict, source=source, **overrides)
        with torch.device("meta"):
            model = cls(**config)
        model.load_state_dict(state_dict, strict=True, assign=True)
        return model.eval()

    def to_original(self) -> dict[str, Tensor]:
        """Return the state dict in the release's layout: the inverse of [`from_original`]."""
        from .conversion import export_vqvae

        return export_vqvae(self.state_dict(), dict(self.config))
