"""Quality against the weight of guidance, on the digits models.

trials    one sampling run: what it is and how it is scored
quality   scores of sampled digits
survey    which trials are made
journal   many trials over processes, in a file that survives a kill
analysis  from trials to statements
"""
