"""What bench.py measures: an explainer beside a forward pass and beside LRP in PyTorch."""
