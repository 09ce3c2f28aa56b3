"""What to set for each family of models. The example workflows and the recipes of the documentation are made from this table.

cfg, steps, sampler, scheduler, shift, size and files are those of ComfyUI's own template of the family. Form and gain are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

HF = "https://huggingface.co"
FORM, GAIN = "schedule", 3.0  # Measured: 4.5 on Fashion-MNIST, 2.6 on the digits (docs/evidence.md). No large model was measured.
PAPERS_FORM, PAPERS_GAIN = "row_sum", 1.5  # Measured: 1.3 on Fashion-MNIST, 2.6 on the digits.
DIRECTORIES = ("checkpoints", "diffusion_models", "text_encoders", "vae")
TRIED = ("0.3.64", "0.3.75", "0.33.0")  # ComfyUI versions, oldest first


@dataclass(frozen=True)
class File:
    """A model file that a loader names, its folder in ComfyUI's models, and its address."""

    name: str
    directory: str
    url: str

    def __post_init__(self):
        if self.directory not in DIRECTORIES:
            raise ValueError(f"directory must be one of {', '.join(DIRECTORIES)}, got {self.directory!r}")
        if not (self.url.startswith(f"{HF}/") and self.url.endswith(f"/{self.name}")):
            raise ValueError(f"url must lead to {self.name}, got {self.url!r}")


@dataclass(frozen=True)
class Family:
    """One row of the table."""

    name: str
    template: str  # ComfyUI's own template, by its file name
    cfg: float
    steps: int
    sampler: str
    scheduler: str  # or the node that makes the sigmas, with its defaults
    size: tuple[int, int]  # width and height in pixels
    files: tuple[File, ...]
    shift: float | None = None  # None: the family has no shift node
    frames: int = 1
    fps: int | None = None  # of a video
    negative: str = ""
    note: str = ""  # one sentence on what is special about the family
    comfyui: str = TRIED[0]  # the oldest version tried that has the family
    form: str = FORM
    gain: float = GAIN

    def __post_init__(self):
        if not (self.cfg > 1 and self.steps > 0 and self.gain > 0):
            raise ValueError(f"{self.name}: want cfg > 1, steps > 0 and gain > 0, got {self.cfg}, {self.steps} and {self.gain}")
        if self.comfyui not in TRIED:
            raise ValueError(f"{self.name}: comfyui must be one of {', '.join(TRIED)}, got {self.comfyui!r}")
        if (self.frames > 1) != (self.fps is not None):
            raise ValueError(f"{self.name}: a video has frames and fps, got {self.frames} and {self.fps}")
        if not self.files:
            raise ValueError(f"{self.name}: files must name at least one, got {self.files}")

    @property
    def video(self) -> bool:
        return self.frames > 1

    def file(self, directory: str, index: int = 0) -> File:
        """The file of a folder. Raises IndexError where there are fewer than `index` + 1."""
        return [file for file in self.files if file.directory == directory][index]


def _file(repository: str, folder: str, name: str, directory: str) -> File:
    return File(name, directory, f"{HF}/{repository}/resolve/main/{folder}{name}")


def _checkpoint(repository: str, name: str) -> File:
    return _file(repository, "", name, "checkpoints")


def _split(repository: str, directory: str, name: str) -> File:
    """A file of a repository that is laid out as ComfyUI's models folder is."""
    return _file(repository, f"split_files/{directory}/", name, directory)


QWEN_VL = _split("Comfy-Org/Qwen-Image_ComfyUI", "text_encoders", "qwen_2.5_vl_7b_fp8_scaled.safetensors")
QWEN_VAE = _split("Comfy-Org/Qwen-Image_ComfyUI", "vae", "qwen_image_vae.safetensors")
WAN, HUNYUAN = "Comfy-Org/Wan_2.2_ComfyUI_Repackaged", "Comfy-Org/HunyuanVideo_1.5_repackaged"
HUNYUAN_QWEN_VL = _split(HUNYUAN, "text_encoders", QWEN_VL.name)

FAMILIES = (
    Family(
        "SD1.5", "default", cfg=8.0, steps=20, sampler="euler", scheduler="normal", size=(512, 512), negative="text, watermark",
        files=(_checkpoint("Comfy-Org/stable-diffusion-v1-5-archive", "v1-5-pruned-emaonly-fp16.safetensors"),),
        note="Any SD1.5 checkpoint works the same way.",
    ),
    Family(
        "SDXL", "sdxl_simple_example", cfg=8.0, steps=25, sampler="euler", scheduler="normal", size=(1024, 1024), negative="text, watermark",
        files=(_checkpoint("stabilityai/stable-diffusion-xl-base-1.0", "sd_xl_base_1.0.safetensors"),),
        note="Choose your own checkpoint and keep your cfg.",
    ),
    Family(
        "SD3.5", "sd3.5_simple_example", cfg=4.0, steps=20, sampler="euler", scheduler="sgm_uniform", size=(1024, 1024),
        files=(_checkpoint("Comfy-Org/stable-diffusion-3.5-fp8", "sd3.5_large_fp8_scaled.safetensors"),),
        note="This is SD 3.5 Large; Turbo runs at cfg 1, where REG has nothing to do.",
    ),
    Family(
        "Chroma", "image_chroma_text_to_image", cfg=3.5, steps=26, sampler="euler", scheduler="beta", shift=1.0, size=(1024, 1024),
        negative="low quality, sketch, blurry, flat shading, simple background",
        files=(
            _split("Comfy-Org/Chroma1-HD_repackaged", "diffusion_models", "Chroma1-HD-fp8mixed.safetensors"),
            _file("comfyanonymous/flux_text_encoders", "", "t5xxl_fp8_e4m3fn_scaled.safetensors", "text_encoders"),
            _split("Comfy-Org/Lumina_Image_2.0_Repackaged", "vae", "ae.safetensors"),
        ),
        note="Chroma is a Flux that runs with real cfg.",
    ),
    Family(
        "Qwen-Image", "image_qwen_image", cfg=4.0, steps=20, sampler="euler", scheduler="simple", shift=3.1, size=(1328, 1328),
        files=(_split("Comfy-Org/Qwen-Image_ComfyUI", "diffusion_models", "qwen_image_fp8_e4m3fn.safetensors"), QWEN_VL, QWEN_VAE),
        note="Leave out Lightning LoRAs: they run at cfg 1, where REG has nothing to do.",
    ),
    Family(
        "Qwen-Image-Edit", "image_qwen_image_edit_2511", cfg=4.0, steps=40, sampler="euler", scheduler="simple", shift=3.1, size=(1024, 1024),
        files=(_split("Comfy-Org/Qwen-Image-Edit_ComfyUI", "diffusion_models", "qwen_image_edit_2511_fp8mixed.safetensors"), HUNYUAN_QWEN_VL, QWEN_VAE),
        note="The picture gives the size, about a megapixel.", comfyui="0.33.0",
    ),
    Family(
        "Z-Image", "image_z_image", cfg=4.0, steps=25, sampler="res_multistep", scheduler="simple", shift=3.0, size=(1024, 1024),
        files=(
            _split("Comfy-Org/z_image", "diffusion_models", "z_image_bf16.safetensors"),
            _split("Comfy-Org/z_image_turbo", "text_encoders", "qwen_3_4b.safetensors"),
            _split("Comfy-Org/z_image_turbo", "vae", "ae.safetensors"),
        ),
        note="This is the base model; Turbo runs at cfg 1, where REG has nothing to do.", comfyui="0.33.0",
    ),
    Family(
        "Flux.2 Klein", "image_flux2_klein_text_to_image", cfg=5.0, steps=20, sampler="euler", scheduler="Flux2Scheduler", size=(1024, 1024),
        files=(
            _split("Comfy-Org/flux2-klein", "diffusion_models", "flux-2-klein-base-4b.safetensors"),
            _split("Comfy-Org/flux2-klein", "text_encoders", "qwen_3_4b.safetensors"),
            _split("Comfy-Org/flux2-dev", "vae", "flux2-vae.safetensors"),
        ),
        note="This is the base model; the distilled one runs at cfg 1, where REG has nothing to do.", comfyui="0.33.0",
    ),
    Family(
        "Anima", "image_anima_base_v1", cfg=4.0, steps=30, sampler="euler", scheduler="simple", size=(1024, 1024),
        negative="worst quality, low quality, score_1, score_2, score_3, blurry, jpeg artifacts, sepia",
        files=(
            _split("circlestone-labs/Anima", "diffusion_models", "anima-base-v1.0.safetensors"),
            _split("circlestone-labs/Anima", "text_encoders", "qwen_3_06b_base.safetensors"),
            _split("circlestone-labs/Anima", "vae", "qwen_image_vae.safetensors"),
        ),
        note="Leave out the Turbo LoRA: it runs at cfg 1, where REG has nothing to do.", comfyui="0.33.0",
    ),
    Family(
        "Wan 2.2", "video_wan2_2_14B_i2v", cfg=3.5, steps=20, sampler="euler", scheduler="simple", shift=5.0, size=(640, 640), frames=81, fps=16,
        negative="static, overexposed, blurry, subtitles, worst quality, deformed",
        files=(
            _split(WAN, "diffusion_models", "wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors"),
            _split(WAN, "diffusion_models", "wan2.2_i2v_low_noise_14B_fp8_scaled.safetensors"),
            _split("Comfy-Org/Wan_2.1_ComfyUI_repackaged", "text_encoders", "umt5_xxl_fp8_e4m3fn_scaled.safetensors"),
            _split(WAN, "vae", "wan_2.1_vae.safetensors"),
        ),
        note="Two experts share the steps, so each gets REG Guidance.",
    ),
    Family(
        "HunyuanVideo 1.5", "video_hunyuan_video_1.5_720p_t2v", cfg=6.0, steps=20, sampler="euler", scheduler="simple", shift=7.0, size=(1280, 720),
        frames=121, fps=24,
        files=(
            _split(HUNYUAN, "diffusion_models", "hunyuanvideo1.5_720p_t2v_fp16.safetensors"),
            HUNYUAN_QWEN_VL,
            _split(HUNYUAN, "text_encoders", "byt5_small_glyphxl_fp16.safetensors"),
            _split(HUNYUAN, "vae", "hunyuanvideo15_vae_fp16.safetensors"),
        ),
        note="The distilled models run at cfg 1, where REG has nothing to do.", comfyui="0.3.75",
    ),
    Family(
        "LTX-2", "video_ltx2_t2v", cfg=4.0, steps=20, sampler="euler_ancestral", scheduler="LTXVScheduler", size=(640, 352), frames=121, fps=24,
        negative="blurry, low quality, still frame, frames, watermark, overlay, titles, subtitles",
        files=(
            _checkpoint("Lightricks/LTX-2", "ltx-2-19b-dev-fp8.safetensors"),
            _split("Comfy-Org/ltx-2", "text_encoders", "gemma_3_12B_it_fp4_mixed.safetensors"),
        ),
        note="This is the first pass of ComfyUI's template; the second, which enlarges, runs at cfg 1.", comfyui="0.33.0",
    ),
)  # fmt: skip


def family(name: str) -> Family:
    """A row by its name. Raises ValueError for a name that is not in the table."""
    for row in FAMILIES:
        if row.name == name:
            return row
    raise ValueError(f"family must be one of {', '.join(row.name for row in FAMILIES)}, got {name!r}")
