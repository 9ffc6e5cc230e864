"""What the tokenizer is trained on: pixels, quantisation, and an optional perceptual distance."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from var_hf.modeling_vqvae import MultiScaleVQVAE


class TokenizerPass(nn.Module):
    """Images through encoder, quantizer and decoder, with the gradients that training needs.

    One module with one `forward`, so that DistributedDataParallel can wrap it.
    """

    def __init__(self, vqvae: MultiScaleVQVAE):
        super().__init__()
        self.vqvae = vqvae

    def forward(
        self, images: Tensor, quantize: bool
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
        """Images ``(B, 3, P, P)`` in [-1, 1] to what the losses are made of.

        Args:
            images: The batch.
            quantize: Put the quantizer between encoder and decoder; without it a plain autoencoder.

        Returns:
            The reconstruction ``(B, 3, P, P)``, unclamped; the codebook loss and the commitment
            loss (0 without quantizer); the token maps, S tensors ``(B, T)``; and what each scale
            wanted to describe, S tensors ``(B, T, Z)``, without gradient.
        """
        vqvae = self.vqvae
        features = vqvae.quant_conv(vqvae.encoder(images)).float()
        with torch.autocast(features.device.type, enabled=False):
            latents, codebook_loss, commitment_loss, token_maps, targets = quantize_with_gradients(
                vqvae, features
            )
        if quantize:
            # Straight through: the decoder sees the quantised latents, the encoder its gradient.
            decoder_input = features + (latents - features).detach()
        else:
            decoder_input = features
            # Touches every parameter, which distributed training insists on, and changes none.
            codebook_loss, commitment_loss = codebook_loss * 0.0, commitment_loss * 0.0
        reconstruction = vqvae.decoder(vqvae.post_quant_conv(decoder_input)).float()
        return reconstruction, codebook_loss, commitment_loss, token_maps, targets


def quantize_with_gradients(
    vqvae: MultiScaleVQVAE, features: Tensor
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
    """`MultiScaleQuantizer.encode` with losses that teach codebook, refiners and encoder.

    After each scale the running sum is compared with the features: the codebook and the refiners
    move towards the features (codebook loss), the features towards the sum (commitment loss). Both
    are means over the scales, so the coarse scales count as much as the fine ones.

    Returns:
        Latents ``(B, Z, F, F)``, codebook loss, commitment loss, token maps and targets per scale.

    Source: arXiv 2404.02905, section 3.2, with the two-sided loss of VQ-VAE (arXiv 1711.00937).
    """
    quantizer = vqvae.quantizer
    goal = features.detach()
    residual, latents = goal, torch.zeros_like(goal)
    codebook_loss = commitment_loss = features.new_zeros(())
    token_maps, all_targets = [], []
    for scale in range(quantizer.num_scales):
        targets = quantizer.shrink(residual, scale)  # (B, T, Z)
        tokens = quantizer.nearest_codes(targets.flatten(0, 1)).view(targets.shape[:2])
        added = quantizer.expand(quantizer.codes(tokens), scale)  # (B, Z, F, F)
        latents = latents + added
        residual = residual - added.detach()
        codebook_loss = codebook_loss + functional.mse_loss(latents, goal)
        commitment_loss = commitment_loss + functional.mse_loss(features, latents.detach())
        token_maps.append(tokens)
        all_targets.append(targets)
    num_scales = quantizer.num_scales
    return (
        latents,
        codebook_loss / num_scales,
        commitment_loss / num_scales,
        token_maps,
        all_targets,
    )
