"""Explains the decisions of vision models in ONNX: LRP and contrastive LRP as one ONNX graph.

After Gu, Yang, Tresp: Understanding Individual Decisions of CNNs via Contrastive Backpropagation,
ACCV 2018, https://arxiv.org/abs/1812.02100.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx_clrp.compiler import convert as convert
    from onnx_clrp.errors import ClrpError as ClrpError
    from onnx_clrp.errors import DeviceError as DeviceError
    from onnx_clrp.errors import ImageError as ImageError
    from onnx_clrp.errors import ModelError as ModelError
    from onnx_clrp.errors import UnsupportedError as UnsupportedError
    from onnx_clrp.errors import UsageError as UsageError
    from onnx_clrp.image import Preprocessing as Preprocessing
    from onnx_clrp.model import save as save
    from onnx_clrp.rules import gradient as gradient
    from onnx_clrp.rules import rule as rule
    from onnx_clrp.runtime import Explainer as Explainer
    from onnx_clrp.runtime import Result as Result
    from onnx_clrp.sessions import custom_operators as custom_operators

_HOMES = {
    "convert": "compiler",
    "save": "model",
    "Explainer": "runtime",
    "Result": "runtime",
    "Preprocessing": "image",
    "gradient": "rules",
    "rule": "rules",
    "custom_operators": "sessions",
    "ClrpError": "errors",
    "DeviceError": "errors",
    "ImageError": "errors",
    "ModelError": "errors",
    "UnsupportedError": "errors",
    "UsageError": "errors",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    """Public names are imported when they are first used: `--help` needs none of them."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
