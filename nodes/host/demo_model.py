"""The demo model as a MODEL of ComfyUI."""

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models_base
import torch

from ...reg_core.demo_models.loading import LEVELS


def demo_model(denoiser):
    """A MODEL of a demo denoiser: a real BaseModel with ComfyUI's own EDM sampling."""
    config = _DemoConfig(denoiser)
    device = comfy.model_management.get_torch_device()
    offload = comfy.model_management.unet_offload_device()
    model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EDM, device=offload)
    model.diffusion_model = _DemoNetwork(denoiser.net)
    return comfy.model_patcher.ModelPatcher(model.to(offload).train(False), device, offload)


class _DemoLatent(comfy.latent_formats.LatentFormat):
    latent_channels = 1
    latent_rgb_factors = [[0.5, 0.5, 0.5]]
    latent_rgb_factors_bias = [0.5, 0.5, 0.5]


class _DemoConfig(comfy.supported_models_base.BASE):
    latent_format = _DemoLatent
    memory_usage_factor = 0.1

    def __init__(self, denoiser):
        super().__init__({"disable_unet_model_creation": True})
        self.sampling_settings = {level: getattr(denoiser, level) for level in LEVELS}


class _DemoNetwork(torch.nn.Module):
    """The raw network. The context holds labels [B, tokens, classes], zeros where there is no condition.

    Raises ValueError for latents of another size, which a convolutional network would take in silence."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.dtype = torch.float32

    def forward(self, x, timesteps, context=None, **kwargs):
        wanted, given = self.net.config.shape, tuple(x.shape[1:])
        if given != wanted:
            sizes = (" x ".join(map(str, shape)) for shape in (wanted, given))
            raise ValueError(
                "this demo model takes latents of {}, got {}: set pictures of REG Demo Latent".format(*sizes)
            )
        return self.net(x, timesteps, context.mean(1))
