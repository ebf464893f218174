"""Signing in through an identity provider: OpenID Connect's code flow, and what its tokens say."""
