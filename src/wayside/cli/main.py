"""The ``wayside`` command: the group of all commands, which stand in the modules beside this one.

Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 no hub reachable.
"""

from __future__ import annotations

import signal

import click

from wayside.cli import calls, groups, reload, serve, streams
from wayside.hub import package_version


def main() -> None:
    """Entry point."""
    if reload.is_child():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the parent, which ends this process
    cli(prog_name="wayside")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_version(), prog_name="wayside")
def cli() -> None:
    """Services and durable streams, called and read by polling, long polling, server-sent events or push.

    \b
    wayside serve                                    start a hub on http://127.0.0.1:7070
    wayside publish orders '{"id": 1}'               append a record
    tail -F /var/log/syslog | wayside publish logs   append every line
    wayside tail orders --via sse --from start       follow
    \b
    wayside serve app:hub                            start the hub of app.py, with its services
    wayside work app:hub --hub URL                   run its services for a hub elsewhere
    wayside call thumbs.make photo.jpg width=128     call a service
    \b
    wayside group create billing 'orders/*'          a group whose members share the records of orders
    """


for _command in (*serve.COMMANDS, *calls.COMMANDS, *streams.COMMANDS, *groups.COMMANDS):
    cli.add_command(_command)
    for _each in (_command, *(_command.commands.values() if isinstance(_command, click.Group) else ())):
        for _option in _each.params:
            if isinstance(_option, click.Option):
                _option.show_envvar = True
