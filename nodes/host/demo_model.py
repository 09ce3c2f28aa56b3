"""The demo model as a MODEL of ComfyUI."""

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models_base
import torch


def demo_model(denoiser, sigma_min: float, sigma_max: float):
    """A MODEL of the digits denoiser: a real BaseModel with ComfyUI's own EDM sampling."""
    config = _DigitsConfig(denoiser, sigma_min, sigma_max)
    device = comfy.model_management.get_torch_device()
    offload = comfy.model_management.unet_offload_device()
    model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EDM, device=offload)
    model.diffusion_model = _DigitsNetwork(denoiser.net)
    return comfy.model_patcher.ModelPatcher(model.to(offload).train(False), device, offload)


class _DigitsLatent(comfy.latent_formats.LatentFormat):
    latent_channels = 1
    latent_rgb_factors = [[0.5, 0.5, 0.5]]
    latent_rgb_factors_bias = [0.5, 0.5, 0.5]


class _DigitsConfig(comfy.supported_models_base.BASE):
    latent_format = _DigitsLatent
    memory_usage_factor = 0.1

    def __init__(self, denoiser, sigma_min, sigma_max):
        super().__init__({"disable_unet_model_creation": True})
        levels = {"sigma_min": sigma_min, "sigma_max": sigma_max}
        self.sampling_settings = {"sigma_data": denoiser.sigma_data, **levels}


class _DigitsNetwork(torch.nn.Module):
    """The raw network. The context holds labels [B, tokens, 10], zeros where there is no condition."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.dtype = torch.float32

    def forward(self, x, timesteps, context=None, **kwargs):
        return self.net(x, timesteps, context.mean(1))
