"""A slow float64 reference in plain PyTorch, written without the package it judges."""
