"""Tools that a model may call: what a request says of them, how calls stand in a reply, and how they are found there.

For an API: make a ``ToolUse`` of the request (``tool.py``), let ``ServerState.shaper`` make a ``Shape`` of it, and hand
that to ``prelude.by_messages`` and ``TurnService.start``. The stream's reader then yields calls as pieces; calls and
results in the history are ``Message.tool_calls`` and messages of the role "tool".
"""
