"""``imagefs serve``: an image's disks and partitions over the network block device protocol."""

import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from imagefs.cli.common import (
    Json,
    PasswordFile,
    SourceArgument,
    flush_output,
    opened,
    output,
    print_json,
    tell_left_out,
)
from imagefs.serving.exports import chosen_disk, default_name, open_overlay, overlay_exports, source_exports
from mounters.export import Export
from mounters.nbd_server import NbdServer, parse_address
from mounters.tls_psk import PskCredentials

Nbd = Annotated[
    str, typer.Option("--nbd", help="Where to listen: unix:PATH or HOST:PORT; port 0 is any that is free.")
]
OverlayFile = Annotated[
    Path | None,
    typer.Option("--overlay", help="Let clients write; what they write goes into this file, not the image."),
]
Disk = Annotated[str, typer.Option("--disk", help="Only this disk, as disk4, and its partitions.")]
TlsPsk = Annotated[
    Path | None, typer.Option("--tls-psk", help="Encrypt, with the keys of this file (see psktool).")
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Listen beyond this machine without encryption all the same.")
]
if sys.platform == "win32":
    _CLOSED = signal.SIGBREAK  # Ctrl-Break, and the end of the console
else:
    _CLOSED = signal.SIGHUP


def serve(
    source: SourceArgument,
    nbd: Nbd,
    overlay: OverlayFile = None,
    disk: Disk = "",
    tls_psk: TlsPsk = None,
    insecure: Insecure = False,
    password_file: PasswordFile = None,
    json: Json = False,
) -> None:
    """Serve the disks and partitions of an image, or of every point of a folder, until Ctrl-C or SIGTERM.

    A line is printed for each once clients can connect, with the URI that nbdinfo, nbdcopy and qemu take.
    The image is never written to; with --overlay, one disk can be.

    Example: imagefs serve home-01-01.mrimgx --nbd unix:/tmp/home.nbd

    Exit codes: 0 ended by a signal · 2 · 3 · 4 · 5 · 6 address or overlay refused · 7 input/output error.
    """
    address = parse_address(nbd)
    with ExitStack() as owned:
        opened_source = owned.enter_context(opened(source, password_file))
        if overlay is None:
            exports = source_exports(opened_source, disk)
            tell_left_out(opened_source)
        else:
            point, one = chosen_disk(opened_source, disk)
            exports = overlay_exports(one, owned.enter_context(open_overlay(overlay, point, one)))
        credentials = PskCredentials(tls_psk) if tls_psk is not None else None
        if credentials is not None:
            owned.callback(credentials.close)
        default = default_name(exports)
        server = NbdServer(exports, address, default=default, tls=credentials, insecure=insecure)
        with server:
            for number in (signal.SIGINT, signal.SIGTERM, _CLOSED):
                if signal.getsignal(number) is not signal.SIG_IGN:  # else nohup started us
                    signal.signal(number, lambda *_: server.stop())
            _tell(server, exports, default, tls=credentials is not None, json=json)
            server.serve()


def _tell(server: NbdServer, exports: list[Export], default: str | None, *, tls: bool, json: bool) -> None:
    uris = {export.name: server.address.uri(export.name, tls=tls) for export in exports}
    if json:
        print_json(
            {
                "address": str(server.address),
                "default": default,
                "exports": [
                    {
                        "name": export.name,
                        "uri": uris[export.name],
                        "size": export.size,
                        "writable": export.writable,
                        "description": export.description,
                    }
                    for export in exports
                ],
            }
        )
    else:
        for export in exports:
            output.print(f"{uris[export.name]}  {export.description}", markup=False)
    flush_output()
