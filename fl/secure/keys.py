"""Key agreement (X25519, RFC 7748) and sealing (ChaCha20-Poly1305, RFC 8439).

Each agreed secret becomes a key of one purpose through HKDF-SHA256 over the round and both public keys.
A sealing key serves one message in one direction of one round, so its nonce may be constant.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fl.errors import WireError

__all__ = ("KEY_BYTES", "SEAL_BYTES", "KeyPair", "mask_key", "open_sealed", "seal")

KEY_BYTES = 32
SEAL_BYTES = 16  # Poly1305's tag
_NONCE = bytes(12)


class KeyPair:
    """An X25519 key pair; `private` only where a mask key has been put together again."""

    def __init__(self, private: bytes | None = None) -> None:
        self._key = (
            X25519PrivateKey.generate() if private is None else X25519PrivateKey.from_private_bytes(private)
        )
        self.public: bytes = self._key.public_key().public_bytes_raw()

    @property
    def private(self) -> bytes:
        """What is shared among the peers, for the case that this client drops out."""
        return self._key.private_bytes_raw()

    def agree(self, public: bytes, purpose: bytes) -> bytes:
        """A 32-byte key that only the two have. :raises WireError: not a public key to agree with."""
        try:
            secret = self._key.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as error:
            raise WireError(f"a peer's public key is unusable: {error}") from error
        return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=purpose).derive(secret)


def mask_key(own: KeyPair, peer: bytes, round_number: int) -> bytes:
    """The seed of the mask that two clients have in common, the same on either side."""
    low, high = sorted((own.public, peer))
    return own.agree(peer, b"mask %d " % round_number + low + high)


def seal(own: KeyPair, peer: bytes, round_number: int, text: bytes) -> bytes:
    """`text`, for the owner of `peer` alone; 16 bytes longer."""
    key = own.agree(peer, b"seal %d " % round_number + own.public + peer)
    return ChaCha20Poly1305(key).encrypt(_NONCE, text, None)


def open_sealed(own: KeyPair, peer: bytes, round_number: int, sealed: bytes) -> bytes:
    """What `peer` sealed for us. :raises WireError: it is not that."""
    key = own.agree(peer, b"seal %d " % round_number + peer + own.public)
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, sealed, None)
    except InvalidTag:
        raise WireError("sealed shares cannot be opened: they are not for us, or were changed") from None
