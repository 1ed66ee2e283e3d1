"""The description of a picture in XMP, the format in which photo programs keep what they know about a picture.

It is Dublin Core's `description`, which is IPTC's caption as well: the IPTC Photo Metadata Standard stores its property
Description, "Caption" in older programs, as XMP's dc:description
(https://www.iptc.org/std/photometadata/specification/IPTC-PhotoMetadata#description). Its form is a text for each
language, the one without a language being "x-default" (XMP specification, part 1, ISO 16684-1:2019).

A file that exists is changed in this one place: the rest of it stays as it is, byte for byte.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import cast
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

import regex
from PIL.ImageFile import ImageFile
from PIL.IptcImagePlugin import getiptcinfo

from clipcap.clip.images import open_file

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
DC = "http://purl.org/dc/elements/1.1/"
ITEM_XML = '<{0} xml:lang="x-default">{1}</{0}>'
LANG = "http://www.w3.org/XML/1998/namespace lang"
IN_RDF = [f"{RDF} RDF", f"{RDF} Description"]
DESCRIPTION = [*IN_RDF, f"{DC} description"]
ITEM = [*DESCRIPTION, f"{RDF} Alt", f"{RDF} li"]
IPTC_CAPTION = (2, 120)  # record and data set of IPTC's older form, IIM
UNFIT = regex.compile(r"[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")  # what XML cannot hold
EMPTY = b"""<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
"""


class LeftAlone(Exception):
    """A file that is not changed; the message says what it is, to be read behind "its .xmp is"."""


def description_of(content: bytes) -> str:
    """The description in a file's content, in the default language or else in the first; "" if there is none.

    Raises:
        LeftAlone: it is no XMP, or XMP that is not read here.
    """
    return _Packet(content).description if content.strip() else ""


def described(content: bytes, text: str) -> bytes:
    """A file's content, perhaps empty, with another description in the default language. Raises LeftAlone."""
    packet = _Packet(content if content.strip() else EMPTY)
    text = UNFIT.sub("", text)
    new = packet.with_description(escape(text, {"\r": "&#13;"}))
    if _Packet(new).description != text.strip():
        raise LeftAlone("XMP in a form that cannot be changed")
    return new


def embedded_description(picture: Path) -> str:
    """The description inside a picture, in XMP or as IPTC's caption of before XMP; "" if there is none to be read."""
    try:
        with open_file(picture) as image:
            if image.format == "PNG" and "xmp" not in image.info:
                image.load()  # ExifTool puts it behind the pixels
            packet = image.info.get("xmp") or b""
            older = (getiptcinfo(cast(ImageFile, image)) or {}).get(IPTC_CAPTION) or b""
        found = ""
        with suppress(LeftAlone):  # an IPTC caption may still be read
            found = description_of(packet.strip(b"\0"))
        return found or (older if isinstance(older, bytes) else older[0]).decode("utf-8", "replace").strip()
    except Exception:  # a picture with broken metadata is still a picture
        return ""


class _Packet:
    """XMP, and the places in it where a description is or would be, in bytes."""

    def __init__(self, content: bytes) -> None:
        self.content, self.path = content, list[str]()
        self.about = ""  # what the properties are about, which is the same for all of them and mostly empty
        self.texts: dict[str, list[str]] = {}  # language -> description, in pieces
        self.language = ""
        self.bare = False  # whether nothing has come since an element began
        self.bottom = -1  # the end of RDF
        self.element, self.first, self.item = [-1, -1], -1, [-1, -1]  # dc:description, its first text, its default one
        parser = self.parser = expat.ParserCreate(namespace_separator=" ")
        parser.StartDoctypeDeclHandler, parser.XmlDeclHandler = self._doctype, self._declaration
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._end
        parser.CharacterDataHandler = self._text
        try:
            content.decode("utf-8")
            parser.Parse(content, True)
        except UnicodeDecodeError:
            raise LeftAlone("not UTF-8 text") from None
        except expat.ExpatError as error:
            raise LeftAlone(f"not XML ({error})") from None
        if self.bottom < 0:
            raise LeftAlone("XML, but not XMP")

    @property
    def description(self) -> str:
        """In the default language, or else in the first; "" if there is none."""
        spoken = {language: text for language, pieces in self.texts.items() if (text := "".join(pieces).strip())}
        return spoken.get("x-default") or next(iter(spoken.values()), "")

    def with_description(self, text: str) -> bytes:
        """The content with another description, given as XML."""
        if self.first >= 0:  # without a default one there are other languages, which it comes before
            name = regex.sub(rb"^<|[\s/>].*", b"", self.content[self.first :][:200], flags=regex.DOTALL).decode()
            start, end = self.item if self.item[0] >= 0 else (self.first, self.first)
            return self._put(ITEM_XML.format(name, text), start, end)
        item = f"<rdf:Alt>{ITEM_XML.format('rdf:li', text)}</rdf:Alt>"
        names = f'xmlns:rdf="{RDF}" xmlns:dc="{DC}"'
        if self.element[0] >= 0:
            return self._put(f"<dc:description {names}>{item}</dc:description>", *self.element)
        about = f"{names} rdf:about={quoteattr(self.about)}"
        new = f" <rdf:Description {about}>\n   <dc:description>{item}</dc:description>\n  </rdf:Description>\n "
        return self._put(new, self.bottom, self.bottom)

    def _put(self, new: str, start: int, end: int) -> bytes:
        return self.content[:start] + new.encode() + self.content[end:]

    def _doctype(self, *_: object) -> None:
        raise LeftAlone("XML with a document type, which is not read")

    def _declaration(self, _: str, encoding: str | None, __: int) -> None:
        if encoding and encoding.lower() not in ("utf-8", "us-ascii"):
            raise LeftAlone("not UTF-8 text")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self.path.append(name)
        self.bare = True
        at = self.parser.CurrentByteIndex
        if self.path[-2:] == IN_RDF:
            self.about = self.about or attributes.get(f"{RDF} about", "")
            if f"{DC} description" in attributes:
                raise LeftAlone("XMP with a description in a form that is not read")
        elif self.path[-3:] == DESCRIPTION:
            if self.element[0] >= 0:
                raise LeftAlone("XMP with two descriptions")
            self.element[0] = at
        elif self.path[-5:] == ITEM:
            self.language = attributes.get(LANG, "").lower()
            self.first = at if self.first < 0 else self.first
            if self.language == "x-default" and self.item[0] < 0:
                self.item[0] = at

    def _end(self, name: str) -> None:
        at = self.parser.CurrentByteIndex
        single = self.bare and self.content[at - 2 : at] == b"/>"  # a tag that opens and closes, and is over already
        after = at if single else self.content.find(b">", at) + 1
        if name == f"{RDF} RDF" and not single:
            self.bottom = at
        elif self.path[-3:] == DESCRIPTION:
            self.element[1] = after
        elif self.path[-5:] == ITEM:
            if self.item[0] >= 0 > self.item[1]:
                self.item[1] = after
            self.language = ""
        self.bare = False
        self.path.pop()

    def _text(self, text: str) -> None:
        self.bare = False
        if self.element[0] >= 0 > self.element[1]:
            self.texts.setdefault(self.language, []).append(text)
