"""Images from prompts with CFG or REG: Stable Diffusion 1.4, 2.1 and XL, and whatever else reg_core.integrations.diffusers knows.

    python examples/text_to_image.py --weights stable-diffusion-xl-base-1.0 --prompts prompts.txt --cfg 5 7.5 12 \\
        --form off row_sum schedule --out out/sdxl
    torchrun --nproc_per_node 8 examples/text_to_image.py --weights stable-diffusion-v1-4 --prompts coco.txt --seeds 0 1 2 \\
        --cfg 3 5 7.5 --form off row_sum schedule --schedule constant --schedule interval 10 0.5 --out out/sd14
    python -m reg_core.evaluation score --out out/sd14 --reference coco.npz --clip clip-vit-large-patch14

`--weights`: a folder of the diffusers layout (model_index.json). Needs `pip install reg-guidance[diffusers,eval]`.
"""

from __future__ import annotations

from pathlib import Path

import grid
import numpy as np
import torch
from diffusers import AutoPipelineForText2Image

import reg_core
from reg_core.evaluation.plan import read_prompts
from reg_core.files import FileError
from reg_core.integrations.diffusers import rectified, run_levels

LEAST = 1 + 1e-6  # cfg that a pipeline does not take for "no guidance", where it would leave out one of its two predictions


@torch.no_grad()
def sample(pipe, prompts: list[dict], generators, guide: grid.Guide, steps: int) -> tuple[np.ndarray, reg_core.Run]:
    """(uint8 [B, H, W, 3], the trace). A schedule of cfg needs a pipeline that reads `_guidance_scale` at every step, as those named do."""
    more, first = {}, guide.cfg
    if guide.schedule is not None:

        def cfg_at(step: int) -> float:
            levels = run_levels(pipe.scheduler)
            return max(LEAST, guide.at(levels.sigmas[step], levels))

        def after(pipe, step, t, tensors):
            if step + 1 < len(pipe.scheduler.timesteps):
                pipe._guidance_scale = cfg_at(step + 1)
            return tensors

        pipe.scheduler.set_timesteps(steps)  # as the pipeline will
        first, more = cfg_at(0), {"callback_on_step_end": after}
    texts = [prompt["prompt"] for prompt in prompts]
    negative = [prompt.get("negative", "") for prompt in prompts]
    given = dict(prompt=texts, negative_prompt=negative, generator=generators, guidance_scale=first, num_inference_steps=steps)
    with rectified(pipe, guide.settings) as trace:
        images = pipe(**given, output_type="np", **more).images
    return (255 * images).round().astype(np.uint8), trace.last or reg_core.Run(guide.settings)


def main(argv=None) -> None:
    parser = grid.options(__doc__.splitlines()[0], steps=50, data_std=1.0, cfg=7.5)
    parser.add_argument("--weights", required=True, help="folder with model_index.json")
    parser.add_argument("--prompts", type=Path, required=True, help='one a line, or .jsonl with "prompt" and "negative"')
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    args = parser.parse_args(argv)
    if not Path(args.weights, "model_index.json").is_file():
        raise SystemExit(f"--weights must be a folder with model_index.json, got {args.weights!r}")
    try:
        prompts = read_prompts(args.prompts)
    except FileError as error:
        raise SystemExit(f"--prompts: {error}") from None
    shard = grid.Shard(args.device)
    pipe = AutoPipelineForText2Image.from_pretrained(args.weights, torch_dtype=getattr(torch, args.dtype)).to(shard.device)
    pipe.set_progress_bar_config(disable=True)

    def images(guide, prompts, jobs):
        generators = [torch.Generator().manual_seed(job.noise_seed) for job in jobs]  # noise of the CPU: the same on any device
        return sample(pipe, prompts, generators, guide, args.steps)

    def schedule(words, form):
        return grid.schedule(words, "t2i_plain" if form == "off" else "t2i")

    grid.run(args, prompts, shard, schedule, images)


if __name__ == "__main__":
    main()
