"""Small networks trained on pairs of the zoo: `python -m reg_core.lab.toys --toy 1d --out DIR`.

networks    the network, its denoiser, a pair of denoisers
training    their training
golden      the guidance that belongs to a chain, by Monte Carlo
measure     how near every form comes to it, step by step
checkpoint  the layout of the REG authors' released toy
toy         a toy from its training to its table; picture draws it
"""
