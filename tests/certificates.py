"""A chain of two certificates made for a test: an authority, and a signer whom it vouches for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@dataclass(frozen=True)
class Chain:
    """PEM files: the signer's certificate followed by the authority's, and the signer's key."""

    certificate: Path
    key: Path


def make_chain(folder: Path, *, days: int = 30, key: Any = None) -> Chain:
    """What C2PA asks of a signer: not self-signed, for signatures, for e-mail protection or documents."""
    authority, signer = ec.generate_private_key(ec.SECP256R1()), key or ec.generate_private_key(ec.SECP256R1())
    root = _certificate("An authority", authority, "An authority", authority, days, is_authority=True)
    leaf = _certificate("A studio", signer, "An authority", authority, days, is_authority=False)
    pem = serialization.Encoding.PEM
    chain = Chain(folder / "chain.pem", folder / "key.pem")
    chain.certificate.write_bytes(leaf.public_bytes(pem) + root.public_bytes(pem))
    plain = serialization.NoEncryption()
    chain.key.write_bytes(signer.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return chain


def _certificate(subject: str, key: Any, issuer: str, issuer_key: Any, days: int, *, is_authority: bool) -> Any:
    now = datetime.now(timezone.utc)
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"), False
    )
    extensions = [
        (x509.BasicConstraints(is_authority, None), True),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False),
        (
            x509.KeyUsage(
                digital_signature=not is_authority,
                key_cert_sign=is_authority,
                crl_sign=is_authority,
                decipher_only=False,
                **usage,
            ),
            True,
        ),
    ]
    if not is_authority:
        extensions.append((x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False))
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=60))
        .not_valid_after(now + timedelta(days=days))
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, hashes.SHA256())


def _name(text: str) -> x509.Name:
    parts = ((NameOID.COMMON_NAME, text), (NameOID.ORGANIZATION_NAME, "Test"))
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts])
