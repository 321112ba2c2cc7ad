"""Runs side by side under one protocol: which, how they are run, and their tables and pictures."""
