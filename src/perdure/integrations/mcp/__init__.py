"""An MCP server that offers sandboxes and runs as tools: ``perdure mcp`` (docs/integrations.md).

``server`` serves them, over stdio or HTTP; ``sandboxes`` and ``runs`` are the tools themselves.
"""
