"""C2PA content credentials: a signed statement inside the file that a model made it.

By c2pa-python, which is optional and is imported only where a certificate is given or a file is looked into. No time
stamp is asked from anybody: signing reaches no network.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

from wan_s2v import __version__
from wan_s2v.errors import OutputError, UsageError, reason_of

SOURCE_TYPE: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"  # IPTC's term
MANIFEST_UUID: Final = "d8fec3d61b0e483c92975828877ec481"  # the box that C2PA puts into an mp4
_INSTALL: Final = "Run: pip install wan-s2v[c2pa]"


def open_signer(certificate: str | Path, key: str | Path) -> Any:
    """What signs: a chain of certificates, the signer's own first, and its private key, both PEM without a password.

    Raises: UsageError if a file cannot be read, the two do not fit C2PA, or c2pa-python is not installed.
    """
    chain, secret = (_read(name, path) for name, path in (("sign_certificate", certificate), ("sign_key", key)))
    c2pa = _library()
    try:
        return c2pa.Signer.from_info(c2pa.C2paSignerInfo(_algorithm(secret), chain, secret, None))
    except (c2pa.C2paError, ValueError, TypeError) as error:
        raise UsageError(
            f"{certificate} and {key} cannot sign ({reason_of(error)}). Pass a PEM chain of certificates, the signer's "
            "first, and its PEM key without a password: EC P-256, P-384 or P-521, RSA, or Ed25519."
        ) from error


def sign_video(path: Path, certificate: str | Path, key: str | Path) -> None:
    """Put a signed manifest into an mp4, in its place.

    Raises: UsageError as `open_signer`; OutputError if it cannot be signed, as with a certificate that has expired.
    """
    c2pa = _library()
    agent = {"name": "wan_s2v", "version": __version__}
    made = {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE, "softwareAgent": agent}
    manifest = {
        "claim_generator_info": [agent],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [made]}}],
    }
    signed = path.with_name(f"{path.stem}.signed{path.suffix}")
    try:
        with open_signer(certificate, key) as signer, c2pa.Builder.from_json(manifest) as builder:
            builder.sign_file(path, signed, signer)
        os.replace(signed, path)
    except (c2pa.C2paError, OSError) as error:
        raise OutputError(f"{path.name} cannot be signed with {certificate} ({reason_of(error)}).") from error
    finally:
        signed.unlink(missing_ok=True)


def read_credentials(path: str | Path) -> dict[str, Any] | None:
    """What a file's active manifest says, as plain values; None where it has no manifest.

    `state` is "Valid" where signature and content fit, "Trusted" where the signer is known, too, else "Invalid".
    Raises: UsageError if c2pa-python is not installed; OutputError for a manifest that cannot be read.
    """
    c2pa = _library()
    try:
        reader = c2pa.Reader.try_create(str(path))
        if reader is None:
            return None
        with reader:
            manifest, state = json.loads(reader.json()), reader.get_validation_state()
    except (c2pa.C2paError, OSError, ValueError) as error:
        raise OutputError(f"The content credentials of {path} cannot be read ({reason_of(error)}).") from error
    active = manifest["manifests"][manifest["active_manifest"]]
    actions = [
        action
        for assertion in active.get("assertions", [])
        if assertion["label"].startswith("c2pa.actions")
        for action in assertion["data"]["actions"]
    ]
    signature = active.get("signature_info", {})
    return {
        "state": state,
        "problems": [status["code"] for status in manifest.get("validation_status", [])],
        "signer": {name: signature[name] for name in ("common_name", "issuer", "alg", "time") if name in signature},
        "made_by": [agent.get("name", "") for agent in active.get("claim_generator_info", [])],
        "actions": [
            {name: action[name] for name in ("action", "digitalSourceType", "when") if name in action}
            for action in actions
        ],
    }


def _library() -> Any:
    try:
        import c2pa
    except ImportError:
        raise UsageError(f"Content credentials need c2pa-python, which is not installed. {_INSTALL}.") from None
    return c2pa


def _read(name: str, path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise UsageError(f"{name}={str(path)!r} cannot be read ({reason_of(error)}). Pass a PEM file.") from error


def _algorithm(secret: bytes) -> str:
    """The name that C2PA has for signatures by this key. Raises: ValueError or TypeError for any other."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    key = serialization.load_pem_private_key(secret, password=None)
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.key_size in (256, 384, 521):
        return {256: "es256", 384: "es384", 521: "es512"}[key.curve.key_size]
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256"
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    raise ValueError(f"a key of the kind {type(key).__name__}")
