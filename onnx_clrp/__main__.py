"""`python -m onnx_clrp` is the command `onnx-clrp`."""

from onnx_clrp.cli import main

main()
