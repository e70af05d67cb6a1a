"""Fast functions from vectors to vectors: signs, votes, medians, and the encoding of noisy signs.

They depend on nothing else in the package.
"""
