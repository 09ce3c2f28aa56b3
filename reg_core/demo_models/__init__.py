"""The models that ship: class-conditional diffusion on 8x8 digits, in seconds on a CPU.

`networks` and `loading` need torch and safetensors alone: the nodes import these. `python -m
reg_core.demo_models` shows CFG beside REG. It, `data`, `scores` and `train` need the extra `lab`. Importing
this package loads nothing."""
