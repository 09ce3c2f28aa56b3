"""A reward in the eyes of CLIP vision, through the VAE decoder."""

import torch
import torch.nn.functional as F

from ..backward.thaw import Thaw, private_saved_tensors


class ImageReward:
    """Cosine similarity of CLIP vision embeddings / temperature, decoded at a bounded size."""

    def __init__(self, clip_vision, vae, image, temperature: float, max_latent_size: int):
        self.clip, self.vae, self.temperature, self.size = clip_vision, vae, temperature, max_latent_size
        self.target = clip_vision.encode_image(image[:1])["image_embeds"]

    def models(self):
        """Kept loaded beside the sampled model."""
        return [self.vae.patcher, self.clip.patcher]

    def log_prob(self, x0):
        """x0 [B, C, H, W] -> [B]. Raises ValueError for other latents."""
        if x0.ndim != 4:
            raise ValueError(f"REGRewardImage: want image latents [B, C, H, W], got {list(x0.shape)}")
        modules = self.vae.first_stage_model, self.clip.model
        with Thaw().over(modules) as weights, private_saved_tensors(weights):
            return torch.stack([self._one(sample[None]) for sample in x0])

    def _one(self, x0):
        scale = min(1.0, self.size / max(x0.shape[2:]))
        if scale < 1:
            x0 = F.interpolate(x0, scale_factor=scale, mode="area")
        pixels = (self.vae.first_stage_model.decode(x0.to(self.vae.vae_dtype)).float() + 1) / 2
        side = self.clip.image_size
        pixels = F.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True)
        # ComfyUI's own preparation rounds to 8 bits, which has no gradient.
        statistics = (self.clip.image_mean, self.clip.image_std)
        mean, std = (torch.tensor(v, device=pixels.device).view(1, 3, 1, 1) for v in statistics)
        embedding = self.clip.model(pixel_values=(pixels - mean) / std, intermediate_output=-2)[2].float()
        return F.cosine_similarity(embedding, self.target.to(embedding).clone()).mean() / self.temperature
