"""What a file says about its making: labels for machines, a signature, and a mark for people.

Every video gets the labels. `AIGC` is the tag of GB 45438-2025, which the Chinese Measures for Labelling AI-Generated
Synthetic Content ask for; its fields are listed in the standard's annex E. The XMP packet holds IPTC's term for media
made by a trained model, which photo and film tools read.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import av

from wan_s2v.content_credentials import SOURCE_TYPE, open_signer, sign_video
from wan_s2v.errors import OutputError, UsageError
from wan_s2v.mp4_boxes import append_content
from wan_s2v.visible_mark import VisibleMark

AIGC: Final = "AIGC"
CONTENT_PRODUCER: Final = "wan_s2v"
XMP_UUID: Final = "be7acfcb97a942e89c71999491e3afac"  # Adobe's, for XMP in mp4
_XMP: Final = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}"/></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)


@dataclass(frozen=True)
class Marking:
    """How one file is marked.

    Args:
        visible: text to draw into every frame; None for none.
        content_producer: who answers for the content: a name, or the code that the authority gave.
        sign_certificate, sign_key: for C2PA, both or none.
        produce_id: unique number of this content.
    """

    visible: str | None = None
    content_producer: str = CONTENT_PRODUCER
    sign_certificate: str | Path | None = None
    sign_key: str | Path | None = None
    produce_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def tags(self) -> dict[str, str]:
        """For the container. The fields of whoever spreads the file are theirs to fill in."""
        label = {
            "Label": "1",  # is AI-generated; 2 may be, 3 is suspected
            "ContentProducer": self.content_producer,
            "ProduceID": self.produce_id,
            "ReservedCode1": "",
            "ContentPropagator": "",
            "PropagateID": "",
            "ReservedCode2": "",
        }
        return {AIGC: json.dumps(label, ensure_ascii=False)}

    def check(self, height: int, width: int) -> None:
        """Try, before any work, whatever could fail later.

        Raises: UsageError for a mark that cannot be drawn at this size, for certificate and key that cannot sign, and
            for a producer without a name.
        """
        if not self.content_producer.strip():
            raise UsageError('content_producer="" names nobody. Give a name or a code, or leave it out.')
        if (self.sign_certificate is None) != (self.sign_key is None):
            missing = "sign_key" if self.sign_key is None else "sign_certificate"
            raise UsageError(f"Signing takes a certificate and its key, but {missing} is missing. Give both or none.")
        if self.sign_certificate is not None and self.sign_key is not None:
            open_signer(self.sign_certificate, self.sign_key).close()
        self.mark_for(height, width)

    def mark_for(self, height: int, width: int) -> VisibleMark | None:
        """The visible mark at a frame size."""
        return None if self.visible is None else VisibleMark(self.visible, height, width)

    def finish(self, path: Path) -> None:
        """Label and sign a file that is complete but has not got its name yet.

        Raises: OutputError if the label did not get into the file, or it cannot be signed.
        """
        with av.open(f"file:{path}", metadata_errors="replace") as container:
            if AIGC not in container.metadata:
                raise OutputError("The AIGC label did not get into the video. Update PyAV, and write it again.")
        append_content(path, XMP_UUID, _XMP.encode())
        if self.sign_certificate is not None and self.sign_key is not None:
            sign_video(path, self.sign_certificate, self.sign_key)
