"""Evaluation on real checkpoints: images from running ComfyUI servers, scored by FID, IS and CLIP.

`python -m reg_core.evaluation run|score --help`; docs/evaluate.md explains both. Optional extra `eval`.
Importing this package loads nothing.

plan      which images: points of a grid x prompts x seeds, each with a key that no machine or order changes
template  a workflow in API format and the inputs that a plan sets
store     the folder of images, each whole or absent, so that a killed run continues
server    one ComfyUI server through its HTTP API
drive     a plan over several servers, scheduled by Dask
features  images -> features and class logits
metrics   Frechet distance and inception score of these
score     FID, IS and CLIP score per point, paired by seed
report    the tables
"""
