"""The transformer of VAR: class and coarser scales in, logits for every token of the next scale
out.

What is unusual about it:

- attention is causal between scales, not between tokens: a token sees its own scale and all coarser
  ones;
- queries and keys are L2-normalised and each head learns a scale for their products (Swin v2's
  cosine attention);
- the class enters as the first token and, in every block, as gates, scales and shifts (DiT's
  adaLN-zero);
- keys have no bias;
- the residual stream, norms and logits are float32 whatever the weights are.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, cast

import torch
from huggingface_hub import CommitInfo
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_var import VARConfig

MAX_LOG_SCALE = math.log(
    100
)  # cap of the learned attention scale, as in Swin v2 (arXiv 2111.09883)


@dataclass
class VARModelOutput(ModelOutput):
    """What `VARModel.forward` returns.

    Attributes:
        loss: Mean cross-entropy over all predicted tokens; only with `labels`.
        logits: ``(B, T, V)`` for the T tokens of the scales that were computed, float32.
        past_key_values: The cache that was passed in, now holding these scales too.
        hidden_states: With `output_hidden_states`, the residual stream ``(B, T, C)`` before each
            layer and after the last.
        attentions: With `output_attentions`, the attention weights ``(B, H, T, L)`` of each layer
            over the L tokens up to here; only with eager attention.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class KeyValueMemory:
    """Memory for the keys and values of all layers.

    On a CPU it is taken at once: such a large piece goes back to the system when it is let go,
    which many small ones do not.

    Args:
        num_layers: Number of layers.
    """

    def __init__(self, num_layers: int):
        self.num_layers = num_layers
        self.untaken: list[Tensor] = []

    def take(self, states: Tensor, max_length: int) -> Tensor:
        """What one layer needs for states like these, ``(B, H, T, D)``: ``(2, B, H, max_length,
        D)``.
        """
        shape = (2, *states.shape[:2], max_length, states.shape[-1])
        if states.device.type != "cpu":
            return states.new_empty(shape)
        if not self.untaken:
            self.untaken = list(states.new_empty(self.num_layers, *shape))
        return self.untaken.pop()


class NextScaleCacheLayer(CacheLayerMixin):
    """Keys and values of one layer in memory for all tokens, written in place.

    Args:
        max_length: Number of tokens L of all scales.
        memory: Where it takes its memory from.
    """

    is_sliding = False

    def __init__(self, max_length: int, memory: KeyValueMemory):
        super().__init__()
        self.max_length, self.memory = max_length, memory
        self.cumulative_length = 0
        self.rows: int | None = (
            None  # how many of the batch are still used, from the first; None is all
        )

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take memory for keys and values of the shape, type and device of these."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = self.memory.take(key_states, self.max_length)  # (B, H, L, D)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add keys and values ``(B, H, T, D)``; returns views of all so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, stop = self.cumulative_length, self.cumulative_length + key_states.shape[-2]
        keys, values = self.keys[: self.rows], self.values[: self.rows]
        keys[:, :, start:stop] = key_states
        values[:, :, start:stop] = value_states
        self.cumulative_length = stop
        return keys[:, :, :stop], values[:, :, :stop]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a mask for `query_length` further tokens covers."""
        return self.cumulative_length + query_length, 0

    def get_seq_length(self) -> int:
        """Number of tokens held."""
        return self.cumulative_length

    def get_max_length(self) -> int:
        """Number of tokens that there is room for."""
        return self.max_length


class NextScaleCache(Cache):
    """What one generation remembers from scale to scale, for `past_key_values`.

    Keys and values lie in memory that is taken once, for all scales; nothing is copied as they
    become more. The modulations, which depend on the class alone, are computed with the first scale
    and kept as well: all passes with one cache have to be given the same class labels.

    Args:
        config: Sizes of the model.
    """

    def __init__(self, config: VARConfig):
        memory = KeyValueMemory(config.num_hidden_layers)
        super().__init__(
            layers=[
                NextScaleCacheLayer(config.num_tokens, memory)
                for _ in range(config.num_hidden_layers)
            ]
        )
        self.modulations: dict[int | str, Tensor] = {}  # by layer, ``(B, 1, 2 or 6, C)``

    def keep_rows(self, count: int) -> None:
        """Continue with the first `count` rows of the batch; the others stay unused."""
        for layer in self.layers:
            layer.rows = count
        self.modulations = {name: rows[:count] for name, rows in self.modulations.items()}

    def reset(self) -> None:
        """Forget everything and keep the memory."""
        for layer in self.layers:
            layer.cumulative_length, layer.rows = 0, None
        self.modulations = {}

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Choose rows of the batch."""
        super().reorder_cache(beam_idx)
        self.modulations = {name: rows[beam_idx] for name, rows in self.modulations.items()}


def computed_once(
    past_key_values: Cache | None, name: int | str, compute: Callable[[], Tensor]
) -> Tensor:
    """The result of `compute`, looked up in a [`NextScaleCache`] that has it already."""
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
    """Attention written out: ``(B, H, T, D)`` queries to ``(B, T, H, D)`` outputs and ``(B, H, T,
    L)`` weights.
    """
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def drop_path(x: Tensor, rate: float, training: bool, noise: Tensor | None = None) -> Tensor:
    """Zero whole samples of a residual branch with probability `rate` (arXiv 1603.09382).

    Those are the samples whose `noise` ``(B,)``, uniform in [0, 1), lies below `rate`; drawn if not
    given.
    """
    if not training or rate == 0:
        return x
    if noise is None:
        noise = torch.rand(len(x), device=x.device)
    return x * (noise >= rate).view(-1, 1, 1) / (1 - rate)


class VARLinear(nn.Linear):
    """A linear layer, optionally followed by the tanh-approximated GELU.

    On a CPU and without gradients it calls oneDNN itself, which adds bias and GELU to the product
    while that is still in the cache. The sum is the same up to rounding.
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
            not torch.compiler.is_compiling()  # the compiler has ways of its own
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and input.device.type == weight.device.type == "cpu"
            and input.dtype == weight.dtype
            and type(weight) is nn.Parameter  # quantised weights are tensors of another class
            and onednn_computes(weight.dtype)
        )


@functools.cache
def onednn_computes(dtype: torch.dtype) -> bool:
    """Whether this build of torch has oneDNN's fused linear layer, and this processor serves it in
    `dtype`.
    """
    if not (
        torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    ):
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32


def scaled_linear(in_features: int, out_features: int, *gains: float) -> VARLinear:
    """A linear layer whose initial weights are smaller: `gains` are the factors on equal blocks of
    its rows.

    The layer itself has to know them: for classes defined outside transformers, `_init_weights` is
    called only with modules that hold parameters of their own.
    """
    layer = VARLinear(in_features, out_features)
    layer.init_gains = gains  # type: ignore[assignment]  # no Tensor and no Module
    return layer


def residual_gain(config: VARConfig) -> float:
    """Factor on the initial weights of what writes to the residual stream, twice per layer."""
    return 1 / math.sqrt(2 * config.num_hidden_layers)


def modulation_gains(config: VARConfig) -> list[float]:
    """Factors on the initial weights of two gates, two scales and two shifts.

    Gates start smaller, so that each block starts near the identity.
    """
    return [config.gate_init_scale] * 2 + [config.modulation_init_scale] * 4


class VAREmbeddings(nn.Module):
    """The class token, and the latents of the coarser scales, with their places in the pyramid."""

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
        """Condition ``(B, C)`` and latents ``(B, T, Z)`` to the residual stream ``(B, T, C)``,
        float32.
        """
        parts = []
        if scales.start == 0:
            parts.append(condition[:, None].float() + self.start_embedding)
        if latent_inputs is not None:
            latent_inputs = latent_inputs.to(self.latent_projection.weight.dtype)
            parts.append(self.latent_projection(latent_inputs).float())
        slices = self.config.token_slices[scales.start : scales.stop]
        # Looked up and not sliced: an offloaded weight arrives with the call of its module.
        scale_rows = self.scale_embedding(
            torch.arange(scales.start, scales.stop, device=condition.device)
        )
        places = [
            self.position_embedding[:, tokens] + row
            for row, tokens in zip(scale_rows, slices, strict=True)
        ]
        return torch.cat(parts, dim=1) + torch.cat(places, dim=1)


class VARAttention(nn.Module):
    """Multi-head attention of the tokens of one scale (or of all) over themselves and the coarser
    scales.
    """

    is_causal = False  # else the attention kernels turn "no mask" into a token-causal one

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
        """``(B, T, C)`` in, the same out, with the weights ``(B, H, T, L)`` where eager attention
        is asked for them.
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
        weights = None
        if attention_mask is None and len(token_slices) > 1:
            # Flash kernels take no block mask. One unmasked call per scale over its prefix is the
            # same function.
            outputs = [
                attend(
                    self,
                    query[:, :, tokens],
                    key[:, :, : tokens.stop],
                    value[:, :, : tokens.stop],
                    None,
                    scaling=self.scaling,
                    is_causal=False,
                    output_attentions=output_attentions,  # others than eager warn
                    **kwargs,
                )[0]
                for tokens in token_slices
            ]
            output = torch.cat(outputs, dim=1)  # (B, T, H, D)
        else:
            output, weights = attend(
                self,
                query,
                key,
                value,
                attention_mask,
                scaling=self.scaling,
                is_causal=False,
                output_attentions=output_attentions,
                **kwargs,
            )
        if not output_attentions or self.config._attn_implementation != "eager":
            weights = None  # flex attention returns something else there
        return self.o_proj(output.flatten(2)), weights


class VARMLP(nn.Module):
    """Two linear layers with a tanh-approximated GELU between them."""

    def __init__(self, config: VARConfig):
        super().__init__()
        # VARConfig fills what was left None; its annotations cannot say so.
        width, inner_width = config.hidden_size, int(config.intermediate_size)  # type: ignore[arg-type]
        self.fc1 = VARLinear(width, inner_width)
        self.fc2 = scaled_linear(inner_width, width, residual_gain(config))

    def forward(self, hidden_states: Tensor) -> Tensor:
        if type(self.fc1) is VARLinear:
            return self.fc2(self.fc1(hidden_states, gelu=True))
        # An adapter adds to the layer's output: the GELU has to wait for it.
        return self.fc2(functional.gelu(self.fc1(hidden_states), approximate="tanh"))


class ModulatedNorm(nn.Module):
    """Layer norm whose scale and shift come from the condition; in float32."""

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
        """Two gates, two scales and two shifts in the order of the release, ``(B, 1, 6, C)``,
        float32.
        """
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
        """Residual stream ``(B, T, C)`` in, the same out, float32, with the attention weights if
        asked for.

        `condition` ``(B, C)`` sets the compute dtype.
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
    """The modulated norm before the head; it reads the condition itself, also where the blocks
    share theirs.
    """

    def __init__(self, config: VARConfig):
        super().__init__()
        self.norm = ModulatedNorm(config)
        self.modulation = scaled_linear(
            config.hidden_size, 2 * config.hidden_size, config.modulation_init_scale
        )

    def modulate(self, condition: Tensor) -> Tensor:
        """Scale and shift ``(B, 1, 2, C)``, float32."""
        return self.modulation(functional.silu(condition)).unflatten(-1, (1, 2, -1)).float()

    def forward(
        self, hidden_states: Tensor, condition: Tensor, past_key_values: Cache | None = None
    ) -> Tensor:
        modulation = computed_once(past_key_values, "final_norm", lambda: self.modulate(condition))
        scale, shift = modulation.unbind(2)  # (B, 1, C)
        return self.norm(hidden_states, scale, shift).to(condition.dtype)


class VARModel(PreTrainedModel):
    r"""
    Next-scale prediction transformer (arXiv 2404.02905, section 3).

    Without a cache, [`~VARModel.forward`] predicts all scales in one pass from the true coarser
    ones (teacher forcing); with a cache it continues by one scale. Both are the same function.

    Under `torch.compile(fullgraph=True)` each scale is a graph of its own. torch gives up at eight
    graphs of a function: pass `recompile_limit=16`, or set `torch._dynamo.config.recompile_limit`
    where torch.compile does not take it yet.

    Args:
        config ([`VARConfig`]): Sizes of the model.
    """

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
        """The head, so that PEFT's `all-linear` and quantisers leave it alone."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the head."""
        self.lm_head = cast(VARLinear, new_embeddings)

    def new_cache(self) -> NextScaleCache:
        """An empty cache for one generation."""
        return NextScaleCache(self.config)

    def scales_between(self, start: int, stop: int) -> range:
        """The scales whose tokens are number `start` to `stop - 1`.

        Raises:
            ValueError: The tokens do not make up whole scales.
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
            class_labels: ``(B,)`` in [0, num_classes]; `num_classes` itself is the null class.
            latent_inputs: ``(B, T, Z)``. Without a cache, the running sum of the coarser scales on
                the grid of each scale after the first (`MultiScaleQuantizer.teacher_inputs`), up to
                any scale; with a cache that is not empty, the input of the next scale. Left out for
                the first scale, which reads the class alone.
            past_key_values: A cache, best that of [`~VARModel.new_cache`]; the pass continues after
                the scales that it holds, one scale per pass, and adds to it.
            labels: True tokens ``(B, L)`` of the scales computed, for the loss; -100 is ignored. In
                training mode each class label is then replaced by the null class with
                `class_dropout_prob`.
            dropout_noise: ``(B, 1 + 2 * num_hidden_layers)``, uniform in [0, 1): what decides in
                training on the class dropout and on the drop path of each layer's two branches.
                Drawn if not given; give it to make a sample's losses independent of its batch mates
                and of the process that computes them.
            output_attentions: Also return the attention weights of each layer; needs
                ``attn_implementation="eager"``. The default comes from the config.
            output_hidden_states: Also return the residual stream between the layers.
            return_dict: Return a [`VARModelOutput`], else a tuple of what is not `None`.

        Raises:
            ValueError: The latent inputs do not make up whole scales, or several scales follow a
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
                "With a filled cache one scale is predicted per pass. Got latent_inputs for scales"
                f" {list(scales)}; pass them one at a time."
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
                path_noise=(
                    None if dropout_noise is None else dropout_noise[:, 1 + 2 * i : 3 + 2 * i]
                ),
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
        """Who sees whom when several scales are computed at once: the own scale and every coarser
        one.

        For scales of 1 and 4 tokens (1 = may look)::

            1 0 0 0 0
            1 1 1 1 1   (four times)

        The form is the one that the attention implementation takes; `None` for flash attention,
        which computes scale by scale instead.
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

    @classmethod
    def from_pretrained(
        cls, *args: Any, verify: bool = True, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """Load a saved model, as transformers does; weights that are not those of its config are
        refused.

        Args:
            *args: Folder or Hub repository, as in transformers.
            verify: Refuse a repository that holds a pickle or unlisted code, or whose weights are
                not those of its ``provenance.json``. Folders are not checked; `var-hf verify` does
                that.
            output_loading_info: Return a tuple of the model and what was found while loading.
            **kwargs: All others of transformers.

        Raises:
            HubError: The repository is not there, may not be read, or is refused. An OSError.
            ValueError: A value of the config is of a wrong type or out of range; a tensor is
                missing or unknown, of another shape, of whole numbers, or holds NaN or infinity; or
                the weights are a pickle. transformers alone would draw a missing tensor at random
                and only warn.
        """
        from .stored import check_component, check_loaded

        if verify:
            from .hub import verified_place

            kwargs = verified_place(args, kwargs)
        kwargs = check_component("transformer", args, kwargs, cls.stored_shapes)
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        check_loaded("transformer", args, kwargs, cls.stored_shapes, model, info)
        return (model, info) if output_loading_info else model

    @staticmethod
    def stored_shapes(values: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Every tensor of a saved model with its shape, from the values of its ``config.json``."""
        from .conversion import transformer_shapes

        own = {name: values[name] for name in VARConfig.__annotations__ if name in values}
        return transformer_shapes(VARConfig(**own).to_dict())

    @classmethod
    def from_original(
        cls, file: str | PathLike[str] | dict[str, Tensor], **overrides: Any
    ) -> "VARModel":
        """Load a transformer in the layout of the VAR release.

        Args:
            file: Path of `var_d16.pth` or the like, of a trainer checkpoint, or a state dict.
            **overrides: Config values that the tensors cannot tell, such as `num_attention_heads`
                without q/k norm.

        Raises:
            ValueError: The file is no checkpoint, not a transformer, or its tensors do not fit.
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
        """The state dict in the layout of the VAR release; [`from_original`] read backwards."""
        from .conversion import export_transformer

        return export_transformer(self.state_dict(), self.config.to_dict())

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> CommitInfo:
        """Push the transformer alone in one commit; arguments as in [`VARPipeline.push_to_hub`]."""
        from .hub import push_model

        return push_model(self, repo_id, **kwargs)


AutoConfig.register(VARConfig.model_type, VARConfig, exist_ok=True)
AutoModel.register(VARConfig, VARModel, exist_ok=True)
