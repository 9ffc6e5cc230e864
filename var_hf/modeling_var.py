"""The transformer of VAR: it maps class and coarser scales to logits of the next scale's tokens.

It differs from a usual transformer in these points:

- Attention is causal between scales, not between tokens: a token attends to its own scale and all
  coarser ones.
- Queries and keys are L2-normalised, and each head learns a scale for their products (the cosine
  attention of Swin v2).
- The class is the first token. In every block it also sets gates, scales and shifts (DiT's
  adaLN-zero).
- Keys have no bias.
- The residual stream, norms and logits are float32 for every dtype of the weights.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .checked_model import CheckedModel
from .configuration_var import VARConfig

SHARED_CALL_TOKENS = 256  # scales that end before this token share a masked attention call
MAX_LOG_SCALE = math.log(100)  # cap of the learned attention scale, as in Swin v2
INT8_NOT_SAVED = (
    "The transformer computes in int8, and oneDNN's integer weights cannot be saved. Save the model"
    " before enable_int8(), or load it again."
)


@dataclass
class VARModelOutput(ModelOutput):
    """Output of `VARModel.forward`.

    Attributes:
        loss: Mean cross-entropy over all predicted tokens; only with `labels`.
        logits: ``(B, T, V)`` for the T tokens of the computed scales, float32.
        past_key_values: The cache that was passed in, extended by these scales.
        hidden_states: With `output_hidden_states`, the residual stream ``(B, T, C)`` before each
            layer and after the last.
        attentions: With `output_attentions`, the attention weights ``(B, H, T, L)`` of each layer
            over the L tokens so far; only with eager attention.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class KeyValueMemory:
    """Memory for the keys and values of all layers.

    On a CPU it is allocated at once. The system gets such a large block back when it is freed, but
    not many small ones.

    Args:
        num_layers: Number of layers.
    """

    def __init__(self, num_layers: int):
        self.num_layers = num_layers
        self.untaken: list[Tensor] = []

    def take(self, states: Tensor, max_length: int) -> Tensor:
        """Take ``(2, B, H, max_length, D)`` for one layer, given states ``(B, H, T, D)``."""
        shape = (2, *states.shape[:2], max_length, states.shape[-1])
        if states.device.type != "cpu":
            return states.new_empty(shape)
        if not self.untaken:
            self.untaken = list(states.new_empty(self.num_layers, *shape))
        return self.untaken.pop()


class NextScaleCacheLayer(CacheLayerMixin):
    """Keys and values of one layer, written in place to memory for all tokens.

    Args:
        max_length: Number of tokens L of all scales.
        memory: The source of its memory.
    """

    is_sliding = False

    def __init__(self, max_length: int, memory: KeyValueMemory):
        super().__init__()
        self.max_length, self.memory = max_length, memory
        self.cumulative_length = 0
        self.rows: int | None = None  # number of leading batch rows still in use; None is all

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take memory for keys and values with the shape, dtype and device of these."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = self.memory.take(key_states, self.max_length)  # (B, H, L, D)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add keys and values ``(B, H, T, D)``, and return views of all so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, stop = self.cumulative_length, self.cumulative_length + key_states.shape[-2]
        keys, values = self.keys[: self.rows], self.values[: self.rows]
        keys[:, :, start:stop] = key_states
        values[:, :, start:stop] = value_states
        self.cumulative_length = stop
        return keys[:, :, :stop], values[:, :, :stop]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Select rows of the batch, at most as many as there are, in place."""
        stop, self.rows = self.cumulative_length, len(beam_idx)
        for states in (self.keys, self.values) if stop else ():
            states[: self.rows, :, :stop] = states[beam_idx, :, :stop]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return length and offset of the keys in a mask for `query_length` further tokens."""
        return self.cumulative_length + query_length, 0

    def get_seq_length(self) -> int:
        """Return the number of tokens in the cache."""
        return self.cumulative_length

    def get_max_length(self) -> int:
        """Return the maximum number of tokens."""
        return self.max_length


class NextScaleCache(Cache):
    """The cache of one generation, for `past_key_values`.

    Keys and values lie in memory that is allocated once for all scales, so a new scale copies
    nothing. The modulations depend on the class alone. The cache keeps them from the first scale
    on, so all passes with one cache must have the same class labels.

    Args:
        config: Sizes of the model.
        num_tokens: Number of tokens that the model will read; all by default.
    """

    def __init__(self, config: VARConfig, num_tokens: int | None = None):
        memory = KeyValueMemory(config.num_hidden_layers)
        super().__init__(
            layers=[
                NextScaleCacheLayer(num_tokens or config.num_tokens, memory)
                for _ in range(config.num_hidden_layers)
            ]
        )
        self.modulations: dict[int | str, Tensor] = {}  # by layer, ``(B, 1, 2 or 6, C)``

    def keep_rows(self, count: int) -> None:
        """Continue with the first `count` rows of the batch alone, without copying."""
        for layer in self.layers:
            layer.rows = count
        self.modulations = {name: rows[:count] for name, rows in self.modulations.items()}

    def reset(self) -> None:
        """Clear the cache and keep its memory."""
        for layer in self.layers:
            layer.cumulative_length, layer.rows = 0, None
        self.modulations = {}

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Select rows of the batch, at most as many as there are, in place."""
        super().reorder_cache(beam_idx)
        self.modulations = {name: rows[beam_idx] for name, rows in self.modulations.items()}


def computed_once(
    past_key_values: Cache | None, name: int | str, compute: Callable[[], Tensor]
) -> Tensor:
    """Return the result of `compute`, from the [`NextScaleCache`] if it is there already."""
    known = getattr(past_key_values, "modulations", None)
    if known is None:
        return compute()
    if name not in known:
        known[name] = compute()
    return known[name]


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Compute attention without a fused kernel.

    Queries ``(B, H, T, D)`` give outputs ``(B, T, H, D)`` and weights ``(B, H, T, L)``.
    """
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def attention_calls(
    token_slices: tuple[slice, ...], attention_mask: Any, whole: bool
) -> list[tuple[slice, Any]]:
    """Divide the queries of a pass into calls of the attention function, each with its mask.

    A scale in a call of its own needs no mask, since it attends to all of its prefix; a mask would
    discard nearly half of the products after they are computed. The coarse scales share a call.
    `whole` makes one call, which returns all weights. Flash attention knows no mask.
    """
    is_tensor = isinstance(attention_mask, Tensor)
    if whole or len(token_slices) == 1 or not (is_tensor or attention_mask is None):
        return [(slice(None), attention_mask)]  # flex attention skips masked blocks itself
    shared = sum(tokens.stop <= SHARED_CALL_TOKENS for tokens in token_slices) if is_tensor else 0
    coarse = slice(0, token_slices[shared - 1].stop)
    masked = [(coarse, attention_mask[..., coarse, coarse])] if shared else []
    return [*masked, *((tokens, None) for tokens in token_slices[shared:])]


def drop_path(x: Tensor, rate: float, training: bool, noise: Tensor | None = None) -> Tensor:
    """Zero whole samples of a residual branch with probability `rate` (arXiv 1603.09382).

    A sample is zeroed if its `noise` ``(B,)``, uniform in [0, 1), is below `rate`. By default the
    noise is random.
    """
    if not training or rate == 0:
        return x
    if noise is None:
        noise = torch.rand(len(x), device=x.device)
    return x * (noise >= rate).view(-1, 1, 1) / (1 - rate)


class VARLinear(nn.Linear):
    """A linear layer, optionally followed by the tanh-approximated GELU.

    On a CPU and without gradients it calls oneDNN directly, which fuses the product with bias and
    GELU. The result is the same up to rounding.
    """

    def forward(self, input: Tensor, gelu: bool = False) -> Tensor:
        if self._through_onednn(input):
            name, algorithm = ("gelu", "tanh") if gelu else ("none", "")
            return torch.ops.mkldnn._linear_pointwise(
                input, self.weight, self.bias, name, [], algorithm
            )
        output = functional.linear(input, self.weight, self.bias)
        return functional.gelu(output, approximate="tanh") if gelu else output

    def _through_onednn(self, input: Tensor) -> bool:
        weight = self.weight
        return (
            not torch.compiler.is_compiling()  # the compiler fuses by itself
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and input.device.type == weight.device.type == "cpu"
            and input.dtype == weight.dtype
            and type(weight) is nn.Parameter  # quantised weights have another class
            and onednn_computes(weight.dtype)
        )


@functools.cache
def onednn_computes(dtype: torch.dtype) -> bool:
    """Check whether this build of torch and this CPU support oneDNN's fused layer in `dtype`."""
    if not (
        torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    ):
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32


def scaled_linear(in_features: int, out_features: int, *gains: float) -> VARLinear:
    """Build a linear layer with scaled initial weights: `gains` are factors on equal row blocks.

    The layer itself stores them, because transformers calls `_init_weights` of outside classes only
    with modules that hold parameters.
    """
    layer = VARLinear(in_features, out_features)
    layer.init_gains = gains  # type: ignore[assignment]  # no Tensor and no Module
    return layer


def residual_gain(config: VARConfig) -> float:
    """Return the factor on initial weights of layers that add to the residual stream."""
    return 1 / math.sqrt(2 * config.num_hidden_layers)


def modulation_gains(config: VARConfig) -> list[float]:
    """Return factors on the initial weights of two gates, two scales and two shifts.

    The gates are smaller, so that each block starts near the identity.
    """
    return [config.gate_init_scale] * 2 + [config.modulation_init_scale] * 4


class VAREmbeddings(nn.Module):
    """The embeddings of class token and latents, with their positions and scales."""

    def __init__(self, config: VARConfig):
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.class_embedding = nn.Embedding(config.num_classes + 1, width)
        self.start_embedding = nn.Parameter(torch.zeros(1, config.token_map_sizes[0] ** 2, width))
        self.position_embedding = nn.Parameter(torch.zeros(1, config.num_tokens, width))
        self.scale_embedding = nn.Embedding(config.num_scales, width)
        self.latent_projection = VARLinear(config.latent_channels, width)

    def forward(self, condition: Tensor, latent_inputs: Tensor | None, scales: range) -> Tensor:
        """Map condition ``(B, C)`` and latents ``(B, T, Z)`` to float32 ``(B, T, C)``."""
        parts = []
        if scales.start == 0:
            parts.append(condition[:, None].float() + self.start_embedding)
        if latent_inputs is not None:
            latent_inputs = latent_inputs.to(self.latent_projection.weight.dtype)
            parts.append(self.latent_projection(latent_inputs).float())
        slices = self.config.token_slices[scales.start : scales.stop]
        # A lookup instead of a slice: calling its module loads an offloaded weight.
        scale_rows = self.scale_embedding(
            torch.arange(scales.start, scales.stop, device=condition.device)
        )
        places = [
            self.position_embedding[:, tokens] + row
            for row, tokens in zip(scale_rows, slices, strict=True)
        ]
        return torch.cat(parts, dim=1) + torch.cat(places, dim=1)


class VARAttention(nn.Module):
    """Multi-head attention of the tokens of one or all scales over their own and coarser scales."""

    is_causal = False  # else the attention kernels would use a token-causal mask

    def __init__(self, config: VARConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        width, self.num_heads = config.hidden_size, config.num_attention_heads
        self.head_dim = width // self.num_heads
        self.q_proj = VARLinear(width, width)
        self.k_proj = VARLinear(width, width, bias=False)
        self.v_proj = VARLinear(width, width)
        self.o_proj = scaled_linear(width, width, residual_gain(config))
        if config.qk_norm:  # all published checkpoints; some older user checkpoints lack it
            self.logit_scale = nn.Parameter(torch.full((1, self.num_heads, 1, 1), math.log(4)))
            self.scaling = 1.0
        else:
            self.scaling = 0.25 / math.sqrt(self.head_dim)  # the release's choice, not 1 / sqrt(D)

    def forward(
        self,
        hidden_states: Tensor,
        token_slices: tuple[slice, ...],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Map ``(B, T, C)`` to the same shape.

        With eager attention and `output_attentions`, also return the weights ``(B, H, T, L)``.
        """
        query, key, value = (
            projection(hidden_states).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )  # (B, H, T, D)
        if self.config.qk_norm:
            scale = self.logit_scale.float().clamp_max(MAX_LOG_SCALE).exp()
            query = (functional.normalize(query.float(), dim=-1) * scale).to(value.dtype)
            key = functional.normalize(key.float(), dim=-1).to(value.dtype)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)

        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        returns_weights = output_attentions and self.config._attn_implementation == "eager"
        calls = attention_calls(token_slices, attention_mask, whole=returns_weights)
        results = [
            attend(
                self,
                query[:, :, tokens],
                key[:, :, : tokens.stop],
                value[:, :, : tokens.stop],
                mask,
                scaling=self.scaling,
                is_causal=False,
                output_attentions=output_attentions,  # all but eager attention warn
                **kwargs,
            )
            for tokens, mask in calls
        ]
        parts = [part for part, _ in results]
        output = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)  # (B, T, H, D)
        weights = results[0][1] if returns_weights else None  # flex attention returns others
        return self.o_proj(output.flatten(2)), weights


class VARMLP(nn.Module):
    """Two linear layers with a tanh-approximated GELU between them."""

    def __init__(self, config: VARConfig):
        super().__init__()
        # VARConfig replaces None; its annotations cannot express that.
        width, inner_width = config.hidden_size, int(config.intermediate_size)  # type: ignore[arg-type]
        self.fc1 = VARLinear(width, inner_width)
        self.fc2 = scaled_linear(inner_width, width, residual_gain(config))

    def forward(self, hidden_states: Tensor) -> Tensor:
        if isinstance(self.fc1, VARLinear):
            return self.fc2(self.fc1(hidden_states, gelu=True))
        # An adapter adds to the layer's output before the GELU.
        return self.fc2(functional.gelu(self.fc1(hidden_states), approximate="tanh"))


class ModulatedNorm(nn.Module):
    """Layer norm in float32 with scale and shift from the condition."""

    def __init__(self, config: VARConfig):
        super().__init__()
        self.norm = nn.LayerNorm(
            config.hidden_size, eps=config.layer_norm_eps, elementwise_affine=False
        )

    def forward(self, hidden_states: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return self.norm(hidden_states) * (1 + scale) + shift


class VARDecoderLayer(GradientCheckpointingLayer):
    """Attention and MLP, each normalised, modulated and gated by the condition."""

    def __init__(self, config: VARConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.norm = ModulatedNorm(config)
        self.self_attn = VARAttention(config, layer_idx)
        self.mlp = VARMLP(config)
        self.drop_path_rate = (
            config.drop_path_rate * layer_idx / max(1, config.num_hidden_layers - 1)  # type: ignore[operator]
        )
        if config.share_modulation:  # the 512 px d36 checkpoint
            self.modulation_table = nn.Parameter(torch.zeros(1, 1, 6, config.hidden_size))
        else:
            width = config.hidden_size
            self.modulation = scaled_linear(width, 6 * width, *modulation_gains(config))

    def modulate(self, condition: Tensor, shared_modulation: Tensor | None) -> Tensor:
        """Compute two gates, scales and shifts, in this order: ``(B, 1, 6, C)``, float32."""
        if shared_modulation is not None:
            modulation = shared_modulation + self.modulation_table
        else:
            modulation = self.modulation(functional.silu(condition)).unflatten(-1, (1, 6, -1))
        return modulation.float()

    def forward(
        self,
        hidden_states: Tensor,
        condition: Tensor,
        shared_modulation: Tensor | None,
        token_slices: tuple[slice, ...],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        path_noise: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Map the residual stream ``(B, T, C)`` to the same shape, float32.

        The dtype of `condition` ``(B, C)`` is the compute dtype. With `output_attentions`, the
        second result is the attention weights.
        """
        modulation = computed_once(
            past_key_values, self.layer_idx, lambda: self.modulate(condition, shared_modulation)
        )
        gate_attention, gate_mlp, scale_attention, scale_mlp, shift_attention, shift_mlp = (
            modulation.unbind(2)
        )  # (B, 1, C)
        x = self.norm(hidden_states, scale_attention, shift_attention).to(condition.dtype)
        x, weights = self.self_attn(x, token_slices, attention_mask, past_key_values, **kwargs)
        noise = (None, None) if path_noise is None else path_noise.unbind(1)  # (B,) per branch
        hidden_states = hidden_states + drop_path(
            x * gate_attention, self.drop_path_rate, self.training, noise[0]
        )
        x = self.mlp(self.norm(hidden_states, scale_mlp, shift_mlp).to(condition.dtype))
        x = drop_path(x * gate_mlp, self.drop_path_rate, self.training, noise[1])
        return hidden_states + x, weights


class VARFinalNorm(nn.Module):
    """The modulated norm before the head. Its modulation is never shared with the blocks."""

    def __init__(self, config: VARConfig):
        super().__init__()
        self.norm = ModulatedNorm(config)
        self.modulation = scaled_linear(
            config.hidden_size, 2 * config.hidden_size, config.modulation_init_scale
        )

    def modulate(self, condition: Tensor) -> Tensor:
        """Compute scale and shift ``(B, 1, 2, C)``, float32."""
        return self.modulation(functional.silu(condition)).unflatten(-1, (1, 2, -1)).float()

    def forward(
        self, hidden_states: Tensor, condition: Tensor, past_key_values: Cache | None = None
    ) -> Tensor:
        modulation = computed_once(past_key_values, "final_norm", lambda: self.modulate(condition))
        scale, shift = modulation.unbind(2)  # (B, 1, C)
        return self.norm(hidden_states, scale, shift).to(condition.dtype)


class VARModel(CheckedModel, PreTrainedModel):
    r"""
    Next-scale prediction transformer (arXiv 2404.02905, section 3).

    Without a cache, [`~VARModel.forward`] predicts all scales in one pass from the true coarser
    scales (teacher forcing). With a cache it predicts the next scale. Both compute the same
    function.

    Under `torch.compile(fullgraph=True)` each scale is a separate graph. torch stops at eight
    graphs of a function: pass `recompile_limit=16`, or set `torch._dynamo.config.recompile_limit`
    in versions of torch without that argument.

    Args:
        config ([`VARConfig`]): Sizes of the model.
    """

    component = "transformer"
    config_class = VARConfig
    base_model_prefix = "model"
    main_input_name = "class_labels"
    input_modalities = "image"
    accepts_loss_kwargs = False  # else Trainer would not divide the loss by the accumulation steps
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _no_split_modules = ["VARDecoderLayer", "VAREmbeddings"]
    _skip_keys_device_placement = ["past_key_values"]
    _skip_keys = ["past_key_values"]  # diffusers' name for the same list, read by group offloading
    _keep_in_fp32_modules_strict = ["logit_scale"]
    _input_embed_layer = "class_embedding"

    is_int8 = False
    """Whether the blocks compute in int8 (`VARPipeline.enable_int8`)."""

    def __init__(self, config: VARConfig):
        super().__init__(config)
        self.embeddings = VAREmbeddings(config)
        if config.share_modulation:  # the 512 px d36 checkpoint
            self.shared_modulation = VARLinear(config.hidden_size, 6 * config.hidden_size)
        self.layers = nn.ModuleList(
            VARDecoderLayer(config, i) for i in range(config.num_hidden_layers)
        )
        self.final_norm = VARFinalNorm(config)
        self.lm_head = scaled_linear(config.hidden_size, config.vocab_size, config.head_init_scale)
        self.gradient_checkpointing = False
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        config = self.config
        std = config.initializer_range
        if isinstance(module, nn.Linear):
            gains = torch.tensor(getattr(module, "init_gains", (1.0,)))
            weight = torch.empty(module.weight.shape)
            nn.init.trunc_normal_(weight, std=std)
            gain_of_row = gains.repeat_interleave(len(weight) // len(gains))
            init.copy_(module.weight, weight * gain_of_row[:, None])
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.trunc_normal_(module.weight, std=std)
        elif isinstance(module, VAREmbeddings):
            init.trunc_normal_(module.start_embedding, std=std)
            init.trunc_normal_(module.position_embedding, std=std)
        elif isinstance(module, VARAttention) and config.qk_norm:
            init.constant_(module.logit_scale, math.log(4))
        elif isinstance(module, VARDecoderLayer) and config.share_modulation:
            gains = torch.tensor(modulation_gains(config))
            table = torch.randn(module.modulation_table.shape) / math.sqrt(config.hidden_size)
            init.copy_(module.modulation_table, table * gains[:, None])

    def get_output_embeddings(self) -> nn.Module:
        """Return the head, which PEFT's `all-linear` and quantisers then skip."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the head."""
        self.lm_head = cast(VARLinear, new_embeddings)

    @functools.wraps(PreTrainedModel.save_pretrained)  # diffusers reads the names of its arguments
    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save as in transformers.

        Raises:
            ValueError: The model computes in int8.
        """
        self.check_saveable()
        super().save_pretrained(*args, **kwargs)

    def check_saveable(self) -> None:
        """Raise a ``ValueError`` if the weights exist only in a layout that cannot be saved."""
        if self.is_int8:
            raise ValueError(INT8_NOT_SAVED)

    def new_cache(self, num_tokens: int | None = None) -> NextScaleCache:
        """Return an empty cache for one generation.

        Args:
            num_tokens: Number of tokens that the model will read; all by default.
        """
        return NextScaleCache(self.config, num_tokens)

    def scales_between(self, start: int, stop: int) -> range:
        """Return the scales of the tokens `start` to `stop - 1`.

        Raises:
            ValueError: The tokens do not form whole scales.
        """
        ends = [0] + [tokens.stop for tokens in self.config.token_slices]
        if start not in ends or stop not in ends or start >= stop:
            raise ValueError(
                f"Expected the tokens of whole scales: after {start} cached tokens one of "
                f"{[end - start for end in ends if end > start]} more. Got {stop - start}."
            )
        return range(ends.index(start), ends.index(stop))

    def forward(
        self,
        class_labels: Tensor,
        latent_inputs: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        dropout_noise: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> VARModelOutput | tuple:
        """Predict the tokens of every scale from the class and all coarser scales.

        Args:
            class_labels: ``(B,)`` in [0, num_classes]; `num_classes` is the null class.
            latent_inputs: ``(B, T, Z)``. Without a cache, the running sum of the coarser scales on
                the grid of each scale after the first (`MultiScaleQuantizer.teacher_inputs`), up to
                any scale. With a filled cache, the input of the next scale. Omitted for the first
                scale, which depends on the class alone.
            past_key_values: A cache, such as [`~VARModel.new_cache`]. The pass continues after the
                cached scales, one scale per pass, and adds to the cache.
            labels: True tokens ``(B, L)`` of the computed scales, for the loss; -100 is ignored. In
                training mode, the null class then replaces each class label with probability
                `class_dropout_prob`.
            dropout_noise: ``(B, 1 + 2 * num_hidden_layers)``, uniform in [0, 1). In training, it
                decides on the class dropout and on the drop path of each layer's two branches. By
                default it is random. Pass it to make a sample's loss independent of the other
                samples in the batch and of the process.
            output_attentions: Also return the attention weights of each layer. Needs
                ``attn_implementation="eager"``. The default comes from the config.
            output_hidden_states: Also return the residual stream between the layers.
            return_dict: Return a [`VARModelOutput`], else a tuple of all values that are not
                `None`.

        Raises:
            ValueError: The latent inputs do not form whole scales, or several scales follow a
                filled cache.
        """
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if return_dict is None:
            return_dict = self.config.return_dict

        past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
        length = 0 if latent_inputs is None else latent_inputs.shape[1]
        if past_length == 0:
            length += self.config.token_map_sizes[0] ** 2
        scales = self.scales_between(past_length, past_length + length)
        if past_length and len(scales) > 1:
            raise ValueError(
                "With a filled cache one scale is predicted per pass. Got latent_inputs for scales "
                f"{list(scales)}; pass them one at a time."
            )

        if labels is not None and self.training and self.config.class_dropout_prob > 0:
            if dropout_noise is None:
                class_noise = torch.rand(class_labels.shape, device=class_labels.device)
            else:
                class_noise = dropout_noise[:, 0]
            dropped = class_noise < self.config.class_dropout_prob
            class_labels = class_labels.masked_fill(dropped, self.config.num_classes)

        condition = self.embeddings.class_embedding(class_labels)  # (B, C)
        shared_modulation = None
        if self.config.share_modulation:
            shared_modulation = computed_once(
                past_key_values,
                "shared",
                lambda: self.shared_modulation(functional.silu(condition)).unflatten(
                    -1, (1, 6, -1)
                ),
            )
        hidden_states = self.embeddings(condition, latent_inputs, scales)  # (B, T, C)
        attention_mask = self.scale_causal_mask(hidden_states, scales) if len(scales) > 1 else None

        all_hidden_states = [hidden_states] if output_hidden_states else None
        all_weights = []
        token_slices = self.config.token_slices[scales.start : scales.stop]
        for i, layer in enumerate(self.layers):
            hidden_states, weights = layer(
                hidden_states,
                condition,
                shared_modulation,
                token_slices,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                output_attentions=bool(output_attentions),
                path_noise=None
                if dropout_noise is None
                else dropout_noise[:, 1 + 2 * i : 3 + 2 * i],
                **kwargs,
            )
            if all_hidden_states is not None:
                all_hidden_states.append(hidden_states)
            if weights is not None:
                all_weights.append(weights)
        logits = self.lm_head(
            self.final_norm(hidden_states, condition, past_key_values)
        ).float()  # (B, T, V)

        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        output = VARModelOutput(
            loss=loss,
            logits=logits,
            past_key_values=past_key_values,
            hidden_states=None if all_hidden_states is None else tuple(all_hidden_states),
            attentions=tuple(all_weights) or None,
        )
        return output if return_dict else output.to_tuple()

    def scale_causal_mask(self, hidden_states: Tensor, scales: range) -> Tensor | None:
        """Return the mask of a pass over several scales, each attending to itself and coarser ones.

        For scales of 1 and 4 tokens (1 = attends)::

            1 0 0 0 0
            1 1 1 1 1   (four times)

        The format depends on the attention implementation. It is `None` for flash attention, which
        computes scale by scale instead.
        """
        lengths = [
            tokens.stop - tokens.start
            for tokens in self.config.token_slices[scales.start : scales.stop]
        ]
        levels = torch.cat(
            [torch.full((n,), i, device=hidden_states.device) for i, n in enumerate(lengths)]
        )
        return create_causal_mask(
            self.config,
            inputs_embeds=hidden_states.to(self.dtype),
            attention_mask=None,
            past_key_values=None,
            block_sequence_ids=levels.expand(len(hidden_states), -1),
        )

    @staticmethod
    def stored_shapes(values: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Return every tensor of a saved model with its shape, from its ``config.json``."""
        from .conversion import transformer_shapes

        own = {name: values[name] for name in VARConfig.__annotations__ if name in values}
        return transformer_shapes(VARConfig(**own).to_dict())

    @classmethod
    def from_original(
        cls, file: str | PathLike[str] | dict[str, Tensor], **overrides: Any
    ) -> "VARModel":
        """Load a transformer in the layout of the VAR release.

        Args:
            file: Path of a file such as `var_d16.pth` or a trainer checkpoint, or a state dict.
            **overrides: Config values that the tensors do not determine, such as
                `num_attention_heads` without q/k norm.

        Raises:
            ValueError: The file is not a checkpoint, is not a transformer, or has wrong tensors.
        """
        from .conversion import convert_transformer, read_original

        state_dict = file if isinstance(file, dict) else read_original(file, part="transformer")
        source = getattr(file, "path", None) if isinstance(file, dict) else file  # errors name it
        state_dict, config = convert_transformer(state_dict, source=source, **overrides)
        with torch.device("meta"):
            model = cls(VARConfig(**config))
        model.load_state_dict(state_dict, strict=True, assign=True)
        return model.eval()

    def to_original(self) -> dict[str, Tensor]:
        """Return the state dict in the release's layout: the inverse of [`from_original`]."""
        from .conversion import export_transformer

        return export_transformer(self.state_dict(), self.config.to_dict())


AutoConfig.register(VARConfig.model_type, VARConfig, exist_ok=True)
AutoModel.register(VARConfig, VARModel, exist_ok=True)
