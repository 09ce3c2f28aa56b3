"""Gaussian mixtures, for which the optimum of guidance is known.

mixture     a mixture seen through noise, in closed form
zoo         pairs of them, by name
optimum     the guidance that REG approximates; quadrature integrates it
exact       every form of REG with the exact Jacobian
distances   from samples to a distribution
study       how near every form comes
"""
