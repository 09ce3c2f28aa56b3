"""Quality against the weight of guidance, on the digits and on Fashion-MNIST.

setups      which models guide, their labels and noise
cuda_noise  the noise that a GPU draws, on any machine
trials      one sampling run: what it is and how it is scored
quality     scores of sampled pictures
bets        forms of our own that are tried
survey      which trials are made; `python -m reg_core.lab.fronts` makes them
journal     many trials over processes, in a file that survives a kill
analysis    from trials to statements
strength    how much less a form guides
"""
