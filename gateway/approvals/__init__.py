"""Who agreed to what: requests put before people, their reviews, the decisions.

`lifecycle` knows the states, `review` the use cases (one function, one transaction, its own
audit records), `exchanges` keeps what waits, `wakeups` tells whoever waits.
"""
