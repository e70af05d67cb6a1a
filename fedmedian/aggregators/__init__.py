"""Aggregators: rules that turn clients' answers into a direction."""
