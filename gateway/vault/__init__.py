"""Opens secrets by reference, at the last moment, in one place.

Only the sender asks for a value. Everything else passes `SecretRef`, which says where a secret
lives. Fails closed: what cannot be opened raises `Unavailable`, and nothing is sent.
"""

from gateway.store.references import SecretRef
from gateway.vault.oauth import Clients
from gateway.vault.opening import Vault, open_vault
from gateway.vault.secret import Purpose, Secret

__all__ = ["Clients", "Purpose", "Secret", "SecretRef", "Vault", "open_vault"]
