"""A plan without ComfyUI, over the processes of torchrun or accelerate; here for the digits model:

torchrun --nproc-per-node 2 -m reg_core.evaluation.sample --out DIR --cfg 2 4 --forms off row_sum schedule --seeds 0 1 2

The unit of work is a batch that the plan fixes, and each image has its own noise generator: any number of processes makes
exactly the images that one makes. `sample` takes your own model.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..guided import Guided
from ..rectify import FORMS, Settings
from ..sampling import karras_sigmas, sample_heun
from .plan import Job, Plan, PlanError, points
from .store import Store

# draw(point labels, prompts [n], noise seeds [n]) -> images [n, C, H, W] in 0..1 with C = 1 or 3, effective cfg or None
Draw = Callable[[dict, Sequence[dict], Sequence[int]], tuple[Tensor, float | None]]


def ranks() -> tuple[int, int]:
    """(rank, world size) as torchrun and accelerate set them; (0, 1) without either."""
    rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if not 0 <= rank < world:
        raise PlanError(f"want 0 <= RANK < WORLD_SIZE, got RANK={rank} and WORLD_SIZE={world}")
    return rank, world


def units(plan: Plan, size: int) -> list[list[Job]]:
    """Batches of at most `size` jobs of one point and seed, in an order that depends on the plan alone."""
    groups = ([Job(p, i, s) for i in range(len(plan.prompts))] for s in plan.seeds for p in range(len(plan.points)))
    return [jobs[k : k + size] for jobs in groups for k in range(0, len(jobs), size)]


def sample(plan: Plan, draw: Draw, out: str | Path, size: int, rank: int = 0, world: int = 1, on_done=lambda done, total: None) -> None:
    """This process's share of the plan: every world-th batch. Batches that are all there are not drawn again."""
    store = Store(out)
    mine = units(plan, size)[rank::world]
    for done, jobs in enumerate(mine, 1):
        facts = {"unit": [list(job) for job in jobs]}  # another batch size makes other last bits
        records = [store.record(plan.key(job)) for job in jobs]
        for job, record in zip(jobs, records, strict=True):
            if record is not None and record.get("unit") != facts["unit"]:
                raise PlanError(f"{store.out} already holds {plan.key(job)}, made by another command: use another folder")
        if None in records:
            images, cfg = draw(plan.points[jobs[0].point].labels, [plan.prompts[job.prompt] for job in jobs], [job.noise_seed for job in jobs])
            for job, image in zip(jobs, images, strict=True):
                store.put(plan, job, [png(image)], effective_cfg=cfg, **facts)
        on_done(done, len(mine))


def noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Unit noise [n, *shape], each row from its own seed."""
    return torch.stack([torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def png(image: Tensor) -> bytes:
    """An image [C, H, W] in 0..1, C = 1 or 3, as the bytes of a PNG file."""
    from PIL import Image

    pixels = (image * 255).round().clamp(0, 255).byte().movedim(0, -1).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def digits_draw(name: str = "digits", steps: int = 18) -> Draw:
    """Draws with the digits model; a prompt is a digit."""
    from ..lab.evaluate import SIGMA_MAX, SIGMA_MIN
    from ..lab.models import load_digits_model
    from ..lab.networks import IMAGE_SHAPE, SIGMA_DATA

    model, sigmas = load_digits_model(name), karras_sigmas(steps, SIGMA_MIN, SIGMA_MAX)

    def draw(labels, prompts, seeds):
        digits = torch.tensor([int(prompt["prompt"]) for prompt in prompts])
        settings = Settings(form=labels["form"], data_std=SIGMA_DATA)
        guided = Guided(lambda x, s: model(x, s, digits), lambda x, s: model(x, s), labels["cfg"] - 1, settings)
        images = sample_heun(guided, SIGMA_MAX * noise(seeds, IMAGE_SHAPE), sigmas)
        return (images + 1) / 2, labels["cfg"] if labels["form"] == "off" else guided.trace.last.effective_cfg

    return draw


def parse(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="[torchrun ... -m | python -m] reg_core.evaluation.sample", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="digits", help="digits or digits_weak (default %(default)s)")
    parser.add_argument("--cfg", type=float, nargs="+", default=[2.0, 4.0])
    parser.add_argument("--forms", nargs="+", choices=[f for f in FORMS if f != "calibrated"], default=["off", "row_sum", "schedule"])
    parser.add_argument("--per-digit", type=int, default=10, help="images of each digit, point and seed (default %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=18, help="Heun steps (default %(default)s)")
    parser.add_argument("--batch", type=int, default=50, help="images drawn together; part of what is computed (default %(default)s)")
    args = parser.parse_args(argv)
    for name, least in (("per_digit", 1), ("steps", 2), ("batch", 1)):
        if getattr(args, name) < least:
            parser.error(f"want --{name.replace('_', '-')} >= {least}, got {getattr(args, name)}")
    return args


def main(argv=None) -> int:
    from tqdm import tqdm

    args, (rank, world) = parse(argv), ranks()
    torch.set_num_threads(1)  # small networks; and so that processes do not fight
    prompts = tuple({"prompt": str(digit)} for _, digit in itertools.product(range(args.per_digit), range(10)))
    try:
        plan = Plan(points({"cfg": args.cfg, "form": args.forms}), prompts, tuple(args.seeds))
        if world > 1:
            torch.distributed.init_process_group("gloo")
        with tqdm(unit="batch", disable=rank > 0) as bar:

            def on_done(done, total):
                bar.total = total
                bar.update(done - bar.n)

            if rank == 0:
                with Store(args.out) as store:  # alone on the folder? and sweeps what a killed run left
                    store.begin(plan)
            if world > 1:
                torch.distributed.barrier()
            sample(plan, digits_draw(args.model, args.steps), args.out, args.batch, rank, world, on_done)
        if world > 1:
            torch.distributed.barrier()  # all shards are there
        if rank == 0:
            print(f"{len(plan.jobs())} images: {Store(args.out).finish(plan)}")
    except PlanError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    finally:
        if world > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
