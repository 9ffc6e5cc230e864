"""An independent implementation of VAR: slow, literal, with the tensor names of the release.

Nothing here is vectorised over scales, cached or masked: a pass sees exactly the tokens that it may
see. The golden tests hold these functions against the numbers of the original code; the other tests
then hold the package against these functions where the golden data have no case (ten scales, other
refiners, no q/k norm).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def linear(x: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def layer_norm(x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()


@dataclass
class Tokenizer:
    """The release's VQVAE as functions of its state dict."""

    weights: Mapping[str, Tensor]
    token_map_sizes: Sequence[int]
    groups: int
    mix: float = 0.5
    eps: float = 1e-6

    # Layers

    def conv(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        padding = weight.shape[-1] // 2 if stride == 1 else 0
        bias = self.weights[f"{name}.bias"]
        return functional.conv2d(x, weight, bias, stride=stride, padding=padding)

    def norm(self, x: Tensor, name: str) -> Tensor:
        grouped = x.reshape(len(x), self.groups, -1)
        x = layer_norm(grouped, self.eps).reshape(x.shape)
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return x * weight[:, None, None] + bias[:, None, None]

    def residual(self, x: Tensor, name: str) -> Tensor:
        h = x
        for i in (1, 2):
            h = self.norm(h, f"{name}.norm{i}")
            h = self.conv(h * h.sigmoid(), f"{name}.conv{i}")
        if f"{name}.nin_shortcut.weight" in self.weights:
            x = self.conv(x, f"{name}.nin_shortcut")
        return x + h

    def attention(self, x: Tensor, name: str) -> Tensor:
        q, k, v = self.conv(self.norm(x, f"{name}.norm"), f"{name}.qkv").flatten(2).chunk(3, dim=1)
        weights = (q.transpose(1, 2) @ k / math.sqrt(q.shape[1])).softmax(-1)  # (B, h * w, h * w)
        h = (weights @ v.transpose(1, 2)).transpose(1, 2).reshape(x.shape)
        return x + self.conv(h, f"{name}.proj_out")

    def blocks(self, x: Tensor, name: str) -> Tensor:
        i = 0
        while f"{name}.block.{i}.conv1.weight" in self.weights:
            x = self.residual(x, f"{name}.block.{i}")
            if f"{name}.attn.{i}.qkv.weight" in self.weights:
                x = self.attention(x, f"{name}.attn.{i}")
            i += 1
        return x

    def middle(self, x: Tensor, name: str) -> Tensor:
        x = self.residual(x, f"{name}.mid.block_1")
        x = self.attention(x, f"{name}.mid.attn_1")
        return self.residual(x, f"{name}.mid.block_2")

    def out(self, x: Tensor, name: str) -> Tensor:
        x = self.norm(x, f"{name}.norm_out")
        return self.conv(x * x.sigmoid(), f"{name}.conv_out")

    # Pixels and latents

    def features(self, images: Tensor) -> Tensor:
        x = self.conv(images, "encoder.conv_in")
        level = 0
        while f"encoder.down.{level}.block.0.conv1.weight" in self.weights:
            x = self.blocks(x, f"encoder.down.{level}")
            if f"encoder.down.{level}.downsample.conv.weight" in self.weights:
                padded = functional.pad(x, (0, 1, 0, 1))  # right and bottom
                x = self.conv(padded, f"encoder.down.{level}.downsample.conv", stride=2)
            level += 1
        return self.conv(self.out(self.middle(x, "encoder"), "encoder"), "quant_conv")

    def images(self, latents: Tensor) -> Tensor:
        """Images in [-1, 1]."""
        x = self.conv(self.conv(latents, "post_quant_conv"), "decoder.conv_in")
        x = self.middle(x, "decoder")
        level = 0
        while f"decoder.up.{level + 1}.block.0.conv1.weight" in self.weights:
            level += 1
        while level >= 0:
            x = self.blocks(x, f"decoder.up.{level}")
            if f"decoder.up.{level}.upsample.conv.weight" in self.weights:
                x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
                x = self.conv(x, f"decoder.up.{level}.upsample.conv")
            level -= 1
        return self.out(x, "decoder").clip(-1, 1)

    # Latents and tokens

    @property
    def codebook(self) -> Tensor:
        return self.weights["quantize.embedding.weight"]

    def refiner(self, scale: int) -> str | None:
        """The name of the convolution that serves a scale; none if the file has none."""
        if "quantize.quant_resi.qresi.weight" in self.weights:
            return "quantize.quant_resi.qresi"
        for prefix in ("quantize.quant_resi.qresi_ls", "quantize.quant_resi"):
            names = [f"{prefix}.{i}" for i in range(len(self.weights))]
            names = [name for name in names if f"{name}.weight" in self.weights]
            if names:
                count = len(names)
                edge = 1 / 3 / count if count == 4 else 1 / 2 / count
                ticks = np.linspace(edge, 1 - edge, count)
                place = scale / (len(self.token_map_sizes) - 1)
                return names[np.argmin(np.abs(ticks - place))]
        return None

    def expand(self, codes: Tensor, scale: int) -> Tensor:
        """What the codes ``(B, T, Z)`` of a scale add to the latents."""
        side, full = self.token_map_sizes[scale], self.token_map_sizes[-1]
        x = codes.transpose(1, 2).reshape(len(codes), -1, side, side)
        if scale < len(self.token_map_sizes) - 1:
            x = functional.interpolate(x, size=(full, full), mode="bicubic")
        name = self.refiner(scale)
        return x if name is None else x * (1 - self.mix) + self.conv(x, name) * self.mix

    def shrink(self, latents: Tensor, scale: int) -> Tensor:
        """Latents averaged onto the grid of a scale, cell by cell, ``(B, T, Z)``."""
        side, full = self.token_map_sizes[scale], self.token_map_sizes[-1]
        cells = []
        for row in range(side):
            for column in range(side):
                top, left = row * full // side, column * full // side
                bottom, right = -(-(row + 1) * full // side), -(-(column + 1) * full // side)
                cells.append(latents[:, :, top:bottom, left:right].mean((2, 3)))
        return torch.stack(cells, dim=1)

    def encode(self, features: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Token maps, and the latents after each scale."""
        latents, tokens, running = torch.zeros_like(features), [], []
        for scale in range(len(self.token_map_sizes)):
            wanted = self.shrink(features - latents, scale)
            distances = (wanted[:, :, None] - self.codebook).square().sum(-1)  # (B, T, V)
            tokens.append(distances.argmin(-1))
            latents = latents + self.expand(self.codebook[tokens[-1]], scale)
            running.append(latents)
        return tokens, running


@dataclass
class Transformer:
    """The release's VAR as functions of its state dict."""

    weights: Mapping[str, Tensor]
    token_map_sizes: Sequence[int]
    num_heads: int
    eps: float = 1e-6
    num_layers: int = field(init=False)

    def __post_init__(self):
        self.num_layers = 1 + max(
            int(name.split(".")[1]) for name in self.weights if name.startswith("blocks.")
        )

    def modulation(self, condition: Tensor, layer: int) -> tuple[Tensor, ...]:
        activated = condition * condition.sigmoid()
        if "shared_ada_lin.1.weight" in self.weights:
            six = linear(activated, self.weights, "shared_ada_lin.1")
            six = six.reshape(len(condition), 1, 6, -1) + self.weights[f"blocks.{layer}.ada_gss"]
        else:
            six = linear(activated, self.weights, f"blocks.{layer}.ada_lin.1")
            six = six.reshape(len(condition), 1, 6, -1)
        return six.unbind(2)

    def attention(self, x: Tensor, layer: int) -> Tensor:
        """Every scale looks at itself and the coarser ones, head by head."""
        name, weights = f"blocks.{layer}.attn", self.weights
        q, k, v = (x @ weights[f"{name}.mat_qkv.weight"].T).chunk(3, dim=-1)
        q, v = q + weights[f"{name}.q_bias"], v + weights[f"{name}.v_bias"]
        width = x.shape[-1] // self.num_heads
        heads = []
        for head in range(self.num_heads):
            part = slice(head * width, (head + 1) * width)
            one_q, one_k, one_v = q[..., part], k[..., part], v[..., part]
            if f"{name}.scale_mul_1H11" in weights:
                one_q = one_q / one_q.norm(dim=-1, keepdim=True).clip(min=1e-12)
                one_k = one_k / one_k.norm(dim=-1, keepdim=True).clip(min=1e-12)
                scale = weights[f"{name}.scale_mul_1H11"][0, head].clip(max=math.log(100)).exp()
            else:
                scale = 0.25 / math.sqrt(width)
            rows, start = [], 0
            for size in self.token_map_sizes:
                stop = start + size**2
                if start < x.shape[1]:
                    seen = one_q[:, start:stop] @ one_k[:, :stop].transpose(1, 2) * scale
                    rows.append(seen.softmax(-1) @ one_v[:, :stop])
                start = stop
            heads.append(torch.cat(rows, dim=1))
        return linear(torch.cat(heads, dim=-1), weights, f"{name}.proj")

    def logits(self, class_labels: Tensor, latent_inputs: Tensor | None) -> Tensor:
        """Logits ``(B, T, V)`` of the first scale and of scales with inputs ``(B, T, Z)``."""
        weights = self.weights
        condition = weights["class_emb.weight"][class_labels]
        x = condition[:, None] + weights["pos_start"]
        if latent_inputs is not None:
            x = torch.cat([x, linear(latent_inputs, weights, "word_embed")], dim=1)
        scale_ids = weights["lvl_1L"][0, : x.shape[1]]
        x = x + weights["lvl_embed.weight"][scale_ids] + weights["pos_1LC"][:, : x.shape[1]]
        for layer in range(self.num_layers):
            gate_1, gate_2, scale_1, scale_2, shift_1, shift_2 = self.modulation(condition, layer)
            h = layer_norm(x, self.eps) * (1 + scale_1) + shift_1
            x = x + self.attention(h, layer) * gate_1
            h = layer_norm(x, self.eps) * (1 + scale_2) + shift_2
            h = functional.gelu(linear(h, weights, f"blocks.{layer}.ffn.fc1"), approximate="tanh")
            x = x + linear(h, weights, f"blocks.{layer}.ffn.fc2") * gate_2
        head = linear(condition * condition.sigmoid(), weights, "head_nm.ada_lin.1")
        scale, shift = head[:, None].chunk(2, dim=-1)
        return linear(layer_norm(x, self.eps) * (1 + scale) + shift, weights, "head")


def filtered(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits ``(V,)`` with -inf for what may not be drawn; 0 and 1.0 are off."""
    kept = logits.clone()
    if top_k:
        kept[logits < logits.sort(descending=True).values[top_k - 1]] = -torch.inf
    if top_p < 1:
        probabilities, order = kept.softmax(0).sort()
        removed = order[probabilities.cumsum(0) <= 1 - top_p]
        removed = removed[removed != order[-1]]
        kept[removed] = -torch.inf
    return kept


@dataclass
class Generation:
    tokens: Tensor  # (B, L)
    logits: Tensor  # (B, L, V), guided, unfiltered
    images: Tensor  # (B, 3, P, P) in [0, 1]


def generate(
    transformer: Transformer,
    tokenizer: Tokenizer,
    class_labels: Tensor,
    *,
    cfg: float,
    top_k: int = 0,
    top_p: float = 1.0,
    more_smooth: bool = False,
    seed: int,
) -> Generation:
    """The release's sampling; `cfg` counts from 0. Every scale computes all coarser ones anew."""
    rng = torch.Generator().manual_seed(seed)
    num_scales = len(tokenizer.token_map_sizes)
    null_class = torch.full_like(class_labels, len(transformer.weights["class_emb.weight"]) - 1)
    all_tokens, all_logits, inputs, latents = [], [], [], torch.zeros(())
    for scale, size in enumerate(tokenizer.token_map_sizes):
        ratio = scale / (num_scales - 1)
        known = torch.cat(inputs, dim=1) if inputs else None
        conditional = transformer.logits(class_labels, known)[:, -(size**2) :]
        unconditional = transformer.logits(null_class, known)[:, -(size**2) :]
        t = cfg * ratio
        logits = (1 + t) * conditional - t * unconditional
        kept = torch.stack([filtered(row, top_k, top_p) for row in logits.flatten(0, 1)])
        tokens = torch.multinomial(kept.softmax(-1), 1, generator=rng)
        tokens = tokens.reshape(len(class_labels), -1)
        codes = tokenizer.codebook[tokens]
        if more_smooth:
            noise = -torch.empty(*logits.shape).exponential_(generator=rng).log()
            temperature = max(0.27 * (1 - 0.95 * ratio), 0.005)
            mixed = (kept.reshape(logits.shape) * (1 + ratio) + noise) / temperature
            codes = mixed.softmax(-1) @ tokenizer.codebook
        latents = latents + tokenizer.expand(codes, scale)
        if scale + 1 < num_scales:
            inputs.append(tokenizer.shrink(latents, scale + 1))
        all_tokens.append(tokens)
        all_logits.append(logits)
    images = tokenizer.images(latents) / 2 + 0.5
    return Generation(torch.cat(all_tokens, 1), torch.cat(all_logits, 1), images)
