"""The app-facing edge: a plain ASGI endpoint, the driver of exchanges, the sender to Azure.

`routes` is an allow-list; `passing` carries requests without MCP tools, `driver` those with;
`clients` keeps a waiting app content; `azure` is the only place that opens secrets.
"""
