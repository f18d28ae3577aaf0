"""An established TCP connection as RFC 9293 has it, and as it is in an archive. Pure."""

from typing import Annotated, Final, Literal

import msgspec

WE_ENDED: Final = {"fin_wait1", "fin_wait2", "closing", "last_ack"}
"""Phases in which the program has sent its last byte: our FIN counts in the sequence numbers."""
THEY_ENDED: Final = {"close_wait", "closing", "last_ack"}
"""Phases in which the peer has: its FIN counts."""


U32 = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
U31 = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
Phase = Literal["established", "fin_wait1", "fin_wait2", "close_wait", "closing", "last_ack"]


class Queue(msgspec.Struct, frozen=True):
    """Bytes in the archive.

    Attributes:
        first_page: number of the page where they begin.
        length: how many.
    """

    first_page: U32
    length: U32


class Window(msgspec.Struct, frozen=True):
    """Struct tcp_repair_window, with the kernel's names."""

    snd_wl1: U32
    snd_wnd: U32
    max_window: U32
    rcv_wnd: U32
    rcv_wup: U32


class Connection(msgspec.Struct, frozen=True):
    """A connection as RFC 9293 has it.

    Attributes:
        phase: its state there.
        sending: what the peer has not acknowledged: sent bytes, then those not yet sent.
        unsent: how many of them were never sent.
        fin_unsent: the program has ended its side, but the FIN waits behind them.
        receiving: what the program has not read.
        send_sequence: number of the first byte of *sending*, or of the next one.
        receive_sequence: of the first byte of *receiving*, or of the next one.
        mss: largest segment that the peer takes.
        scale: window scale of what we receive in the peer's announcements, and in ours; or None.
        sack: are selective acknowledgements agreed on?
        timestamp: our clock for RFC 7323, if it is agreed on.
        window: what was last announced.
        sndbuf, rcvbuf: how large the kernel has made the buffers by now.
    """

    phase: Phase
    sending: Queue
    unsent: U32
    fin_unsent: bool
    receiving: Queue
    send_sequence: U32
    receive_sequence: U32
    mss: U32
    scale: tuple[U32, U32] | None
    sack: bool
    timestamp: U32 | None
    window: Window
    sndbuf: U31
    rcvbuf: U31


NOTHING: Final = Connection(
    phase="established",
    sending=Queue(0, 0),
    unsent=0,
    fin_unsent=False,
    receiving=Queue(0, 0),
    send_sequence=1,
    receive_sequence=1,
    mss=536,
    scale=None,
    sack=False,
    timestamp=None,
    window=Window(snd_wl1=1, snd_wnd=1, max_window=1, rcv_wnd=1, rcv_wup=1),
    sndbuf=0,
    rcvbuf=0,
)
"""The connection of a socket that had one."""


class NotPortable(Exception):  # noqa: N818 (it is a finding, not a fault)
    """The connection cannot be given to another socket; the text says why."""
