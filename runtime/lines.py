"""Text that people's tools have written, one thing a line: editors, shells, spreadsheets, of every system."""

from __future__ import annotations

from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE


def lines(content: bytes) -> list[str]:
    r"""The lines of a text, without those that are blank.

    Only `\n` and `\r\n` end a line: what else Unicode counts as a line's end may stand in a prompt. UTF-16 is
    read where a mark says so, as PowerShell writes it.

    Raises:
        ValueError: text in another encoding; the message says what to do.
    """
    wide = content.startswith((BOM_UTF16_LE, BOM_UTF16_BE))
    try:
        text = content.decode("utf-16") if wide else content.removeprefix(BOM_UTF8).decode()
    except UnicodeDecodeError as fault:
        line = content.count(b"\n", 0, fault.start) + 1
        raise ValueError(f"line {line} is not {'UTF-16' if wide else 'UTF-8'}; save it as UTF-8") from None
    return [line for line in (each.removesuffix("\r") for each in text.split("\n")) if line.strip()]
