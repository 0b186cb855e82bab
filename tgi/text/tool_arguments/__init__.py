"""Syntaxes in which models write the arguments of a call.

Most models write JSON text. `Tagged` has an element for each argument (`<parameter=city>Oslo</parameter>`),
`Literals` has literals of Python (`city="Oslo"`) or of Gemma 4 (`city:<|"|>Oslo<|"|>`). Each writes
arguments, holds a model to the schema of a function, and reads arguments into JSON text while they are
generated.
"""

from .literals import PYTHON, Literals
from .rules import Rules, pattern_of
from .syntax import JSON_TEXT, Reader, Syntax
from .tagged import Tagged

__all__ = ["JSON_TEXT", "PYTHON", "Literals", "Reader", "Rules", "Syntax", "Tagged", "pattern_of"]
