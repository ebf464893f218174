"""The demo: a scripted Azure OpenAI upstream and a sample MCP server, both real network services.

Used by `gatepass demo`, by the tests and by the benchmark. Nothing in here decides, records or
forwards anything for the gateway, and the gateway never imports it outside those three.
"""
