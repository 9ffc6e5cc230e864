"""The adversary of the tokenizer: a network that tells reconstructions from images."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import reduce
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from var_hf.training.tokenizer_config import TokenizerTrainingConfig


class Discriminator(nn.Sequential):
    """Discriminator of overlapping patches: ``(B, 3, P, P)`` to logits ``(B, 1, h, w)``.

    Spectral norms and no batch statistics, so that its verdict on an image does not depend on the
    others of the batch, nor on how many processes share it.

    Args:
        base_channels: Width of the first layer; it doubles at every further one, up to eightfold.
        num_layers: Layers that halve the side; a patch is about ``3 * 2 ** num_layers`` pixels
            wide.

    Source: PatchGAN (arXiv 1611.07004), spectral normalisation (arXiv 1802.05957).
    """

    def __init__(self, base_channels: int = 64, num_layers: int = 3):
        layers: list[nn.Module] = []
        channels = 3
        for index in range(num_layers):
            wider = base_channels * min(2**index, 8)
            layers += [
                spectral_norm(nn.Conv2d(channels, wider, 4, stride=2, padding=1)),
                nn.LeakyReLU(0.2),
            ]
            channels = wider
        layers += [
            spectral_norm(nn.Conv2d(channels, channels, 3, padding=1)),
            nn.LeakyReLU(0.2),
            # A bias here would get the gradient 0 while all logits are within the margin, and Adam
            # would make full steps of its rounding.
            spectral_norm(nn.Conv2d(channels, 1, 3, padding=1, bias=False)),
        ]
        super().__init__(*layers)


def discriminator_hinge_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Hinge loss of the discriminator; 0 once it tells both apart by a margin of 1."""
    real = functional.relu(1 - real_logits).mean()
    fake = functional.relu(1 + fake_logits).mean()
    return (real + fake) / 2


def adaptive_weight(reconstruction_gradient: Tensor, adversarial_gradient: Tensor) -> Tensor:
    """Compute the factor that balances adversary and reconstruction at the decoder's last layer.

    Args:
        reconstruction_gradient: Gradient of the reconstruction terms there.
        adversarial_gradient: Gradient of the adversarial term there.

    Source: VQGAN (arXiv 2012.09841), equation 7; clamped to [0, 1e4].
    """
    ratio = reconstruction_gradient.norm() / (adversarial_gradient.norm() + 1e-6)
    return ratio.clamp(0.0, 1e4).detach()


class Adversary:
    """The discriminator, its optimiser, and both sides' losses.

    Args:
        config: Widths, depth and learning rate.
        accelerator: Spreads the discriminator over the processes.
    """

    def __init__(self, config: TokenizerTrainingConfig, accelerator: Accelerator):
        self.accelerator = accelerator
        self.max_grad_norm = config.max_grad_norm
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)  # every process starts from the same weights
            self.network = Discriminator(config.discriminator_channels, config.discriminator_layers)
        group = {"params": list(self.network.parameters()), "peak": config.learning_rate}
        optimizer = torch.optim.AdamW(
            [group], lr=config.learning_rate, betas=config.betas, weight_decay=0.0
        )
        self.prepared, self.optimizer = accelerator.prepare(self.network, optimizer)

    def judge(
        self, reconstruction: Tensor, reconstruction_loss: Tensor, last_layer: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the tokenizer has to lower: the loss ``()`` and its adaptive weight ``()``.

        Args:
            reconstruction: ``(B, 3, P, P)``.
            reconstruction_loss: The other terms that act on the reconstruction.
            last_layer: Weight of the decoder's last layer.
        """
        self.network.requires_grad_(False)
        loss = -self.network(reconstruction).float().mean()
        self.network.requires_grad_(True)
        gradients = [
            torch.autograd.grad(term, last_layer, retain_graph=True)[0]
            for term in (reconstruction_loss, loss)
        ]
        return loss, adaptive_weight(*(reduce(gradient, "mean") for gradient in gradients))

    def learn(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        """Train on images and reconstructions, both ``(B, 3, P, P)``; return the loss ``()``."""
        # One forward for both halves: DistributedDataParallel counts forwards.
        logits = self.prepared(torch.cat([images, reconstruction])).float()
        loss = discriminator_hinge_loss(*logits.chunk(2))
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.network.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the weights into a checkpoint folder; returns the optimiser's state."""
        weights = {name: value.contiguous() for name, value in self.network.state_dict().items()}
        save_file(weights, folder / "discriminator.safetensors")
        return self.optimizer.state_dict()

    def load(self, folder: Path, optimizer_state: dict[str, Any]) -> None:
        """Read back what `save` wrote."""
        self.network.load_state_dict(load_file(folder / "discriminator.safetensors"))
        self.optimizer.load_state_dict(optimizer_state)
