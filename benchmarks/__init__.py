"""What REG costs beside plain guidance: time per step and peak memory, through ComfyUI's own sampling. `python -m benchmarks --help`"""
