"""Tools that a model may call: declared, told to the model, read from its answer, checked.

`read_tools` takes a declaration in OpenAI's shape, `TOOL_FORMATS` has the ways to tell a model
of tools where its chat template has none, `ToolParser` takes the calls out of an answer. A new
way to tell is a row of `TOOL_FORMATS`; how a model spells its calls needs no choice, for the
parser reads every known way.
"""

from edgekit.runtime.tools.formats import TOOL_FORMATS, ToolFormat, lower_messages
from edgekit.runtime.tools.parse import ToolParser
from edgekit.runtime.tools.spec import Tool, read_tools

__all__ = ["TOOL_FORMATS", "Tool", "ToolFormat", "ToolParser", "lower_messages", "read_tools"]
