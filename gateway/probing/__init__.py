"""What an MCP server is really like: visits through the official client.

With the server's credential, as Azure comes, and without, as anybody may.
"""
