"""Stand-in weights for the Inception network, computed from the names of its tensors.

tests/golden/inception.safetensors holds what torch-fidelity 0.4.0's network computes with them: its
file feature_extractor_inceptionv3.py was run alone, because the package cannot be imported without
torchvision.
"""

import zlib

import torch
from torch import nn


def stand_in_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    weights = {}
    for name, tensor in model.state_dict().items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(0)
        elif name.endswith("running_var"):
            weights[name] = torch.rand(tensor.shape, generator=generator) * 0.5 + 0.75
        elif name.endswith("running_mean"):
            weights[name] = torch.randn(tensor.shape, generator=generator) * 0.1
        elif name.endswith("bn.weight"):
            weights[name] = torch.rand(tensor.shape, generator=generator) * 0.2 + 0.9
        elif name.endswith("bias"):
            weights[name] = torch.randn(tensor.shape, generator=generator) * 0.1
        else:
            scale = (2 / tensor[0].numel()) ** 0.5
            weights[name] = torch.randn(tensor.shape, generator=generator) * scale
    return weights
