"""The laboratory: what REG does where the truth is known, and on small real models. Extra `lab`.

mixtures  Gaussian mixtures, for which the optimum of guidance is known
toys      small networks trained on these mixtures
fronts    quality against the weight of guidance, on the digits models
evidence  docs/evidence.md of all this: `python -m reg_core.lab.evidence`

Importing a package loads nothing."""
