"""What we know: servers and their tools, apps and their keys, policy versions, reviewer groups.

Use cases write through the ledger; the hot path reads `Directory.view`, which is in memory.
"""
