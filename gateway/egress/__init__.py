"""The one way out: a guarded HTTP client for all but Azure and the databases, and its addresses.

Whoever writes down an address that the gateway itself will call (a server to be probed, an issuer
of tokens, a webhook) must not be able to make it call what only the gateway can reach.
"""
