"""Sessions of frameworks in Perdure's context log, one module per framework (docs/integrations.md).

Each imports its framework, so none is imported from here: ``from perdure.integrations.langgraph import PerdureSaver``.
They stand on ``ServerClient.sessions``.
"""
