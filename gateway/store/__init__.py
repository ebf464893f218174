"""What is kept: every table on one page, one way to open a transaction, sealed payloads."""
