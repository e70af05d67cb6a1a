"""Fast functions from vectors to vectors: signs, votes, medians, and the encoding of noisy signs.

They know nothing of the rest of the package: no rules, no models, no messages.
"""
