"""Small real models for experiments and tests: class-conditional diffusion on 8x8 digits.

Import the submodules directly; importing this package loads nothing.
`networks` and `models` need torch and safetensors only, `data`, `evaluate`
and `train` also need the development extras (scikit-learn, tqdm).
"""
