"""Small models with the attribute names of the original release, to write files in its layout.

Only what gives a state dict its names, shapes and buffers is here; nothing computes. The golden
layouts and those of the published files are what these modules are held against.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, width: int, inner: int, heads: int, shared: bool, qk_norm: bool):
        super().__init__()
        self.attn, self.ffn = nn.Module(), nn.Module()
        if qk_norm:
            self.attn.scale_mul_1H11 = nn.Parameter(torch.empty(1, heads, 1, 1))
        self.attn.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn.q_bias = nn.Parameter(torch.empty(width))
        self.attn.v_bias = nn.Parameter(torch.empty(width))
        self.attn.register_buffer("zero_k_bias", torch.zeros(width))
        self.attn.proj = nn.Linear(width, width)
        self.ffn.fc1, self.ffn.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)
        if shared:
            self.ada_gss = nn.Parameter(torch.empty(1, 1, 6, width))
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))


class OriginalTransformer(nn.Module):
    def __init__(
        self,
        *,
        depth: int = 2,
        width: int = 24,
        heads: int = 3,
        inner: int = 40,
        vocab: int = 37,
        channels: int = 5,
        sizes: tuple[int, ...] = (1, 2, 4),
        classes: int = 7,
        shared: bool = False,
        qk_norm: bool = True,
        seed: int = 0,
    ):
        super().__init__()
        num_tokens = sum(size**2 for size in sizes)
        self.word_embed = nn.Linear(channels, width)
        self.class_emb = nn.Embedding(classes + 1, width)
        self.pos_start = nn.Parameter(torch.empty(1, sizes[0] ** 2, width))
        self.pos_1LC = nn.Parameter(torch.empty(1, num_tokens, width))
        self.lvl_embed = nn.Embedding(len(sizes), width)
        if shared:
            self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(
            Block(width, inner, heads, shared, qk_norm) for _ in range(depth)
        )
        levels, mask = levels_and_mask(sizes)
        self.register_buffer("lvl_1L", levels)
        self.register_buffer("attn_bias_for_masking", mask)
        self.head_nm = nn.Module()
        self.head_nm.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.head = nn.Linear(width, vocab)
        fill(self, seed)


def levels_and_mask(sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The scale of each token, and minus infinity where a query would see a finer scale."""
    levels = torch.cat([torch.full((size**2,), level) for level, size in enumerate(sizes)])
    visible = levels[:, None] >= levels[None, :]
    return levels[None], torch.where(visible, 0.0, -torch.inf)[None, None]


class ResidualBlock(nn.Module):
    def __init__(self, channels: int, width: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = nn.Conv2d(channels, width, 3)
        self.norm2 = nn.GroupNorm(groups, width)
        self.conv2 = nn.Conv2d(width, width, 3)
        if channels != width:
            self.nin_shortcut = nn.Conv2d(channels, width, 1)


class Attention(nn.Module):
    def __init__(self, width: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)


class Level(nn.Module):
    def __init__(self, channels: int, width: int, blocks: int, attention: bool, groups: int):
        super().__init__()
        self.block = nn.ModuleList(
            ResidualBlock(width if index else channels, width, groups) for index in range(blocks)
        )
        self.attn = nn.ModuleList(Attention(width, groups) for _ in range(blocks * attention))


class Half(nn.Module):
    """What the encoder and the decoder have in common."""

    def __init__(self, inputs: int, first: int, last: int, outputs: int, groups: int, middle: int):
        super().__init__()
        self.conv_in = nn.Conv2d(inputs, first, 3)
        self.mid = nn.Module()
        self.mid.block_1 = ResidualBlock(middle, middle, groups)
        self.mid.attn_1 = Attention(middle, groups)
        self.mid.block_2 = ResidualBlock(middle, middle, groups)
        self.norm_out = nn.GroupNorm(groups, last)
        self.conv_out = nn.Conv2d(last, outputs, 3)


def resampler(width: int) -> nn.Module:
    module = nn.Module()
    module.conv = nn.Conv2d(width, width, 3)
    return module


class OriginalVQVAE(nn.Module):
    def __init__(
        self,
        *,
        vocab: int = 37,
        channels: int = 5,
        base: int = 4,
        multipliers: tuple[int, ...] = (1, 2),
        blocks: int = 1,
        num_scales: int = 3,
        share_quant_resi: int = 4,
        quant_resi: float = 0.5,
        image_channels: int = 3,
        groups: int = 2,
        seed: int = 1,
    ):
        super().__init__()
        widths = [base * multiplier for multiplier in multipliers]
        last = len(widths) - 1
        self.encoder = Half(image_channels, base, widths[-1], channels, groups, widths[-1])
        inputs = [base, *widths]
        self.encoder.down = nn.ModuleList(
            Level(inputs[level], width, blocks, level == last, groups)
            for level, width in enumerate(widths)
        )
        for level in range(last):
            self.encoder.down[level].downsample = resampler(widths[level])
        self.decoder = Half(channels, widths[-1], widths[0], image_channels, groups, widths[-1])
        inputs = [*widths[1:], widths[-1]]
        self.decoder.up = nn.ModuleList(
            Level(inputs[level], width, blocks + 1, level == last, groups)
            for level, width in enumerate(widths)
        )
        for level in range(1, last + 1):
            self.decoder.up[level].upsample = resampler(widths[level])
        self.quantize = nn.Module()
        self.quantize.register_buffer("ema_vocab_hit_SV", torch.empty(num_scales, vocab))
        if quant_resi:
            refiners = nn.ModuleList(
                nn.Conv2d(channels, channels, 3) for _ in range(share_quant_resi or num_scales)
            )
            if share_quant_resi == 0:
                self.quantize.quant_resi = refiners
            else:
                self.quantize.quant_resi = nn.Module()
                name, value = (
                    ("qresi", refiners[0]) if share_quant_resi == 1 else ("qresi_ls", refiners)
                )
                self.quantize.quant_resi.add_module(name, value)
        self.quantize.embedding = nn.Embedding(vocab, channels)
        self.quant_conv = nn.Conv2d(channels, channels, 3)
        self.post_quant_conv = nn.Conv2d(channels, channels, 3)
        fill(self, seed)


def fill(model: nn.Module, seed: int) -> None:
    """Different numbers everywhere that the release does not compute itself."""
    generator = torch.Generator().manual_seed(seed)
    computed = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias")
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not name.endswith(computed):
                tensor.normal_(generator=generator)


def original_transformer(**sizes) -> dict[str, Tensor]:
    return OriginalTransformer(**sizes).state_dict()


def original_vqvae(**sizes) -> dict[str, Tensor]:
    return OriginalVQVAE(**sizes).state_dict()
