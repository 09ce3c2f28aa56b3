"""Core tests run without ComfyUI."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))  # `oracles`
torch.set_num_threads(1)  # small networks gain little from more, and lose much on busy cores
