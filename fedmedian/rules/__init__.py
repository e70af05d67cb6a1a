"""Noise, scales, optimizers, schedules and trust: frozen values with their state outside."""
