"""Commands about groups: group (create, list, show, delete, pause, resume, seek, dead), receipts, redrive."""

from __future__ import annotations

import datetime as dt
from typing import Any
from urllib.parse import quote, urlencode

import click
import msgspec

from wayside.cli.common import hub_command
from wayside.cli.rest import RestAnswer, RestClient
from wayside.core.records import JSON

LIST_MAX = 1000

json_option = click.option("--json", "as_json", is_flag=True, help="JSON, one object a line.")


def _ask(client: RestClient, method: str, name: str, action: str = "", body: Any = None, **query: Any) -> Any:
    """The document that a request about a group, or about all of them, is answered with."""
    answer = _answer(client, method, name, action, body, **query)
    return msgspec.json.decode(answer.body) if answer.body else None


def _answer(client: RestClient, method: str, name: str, action: str = "", body: Any = None, **query: Any) -> RestAnswer:
    target = client.group_path(name) + (f"/{action}" if action else "")
    if query := {key: value for key, value in query.items() if value not in (None, "")}:
        target += f"?{urlencode(query, quote_via=quote)}"
    data = None if body is None else msgspec.json.encode(body)
    return client.request(method, target, {"Content-Type": JSON} if body is not None else {}, data)


def _print_json(value: Any) -> None:
    click.echo(msgspec.json.encode(value).decode())


def _time(time_ms: int) -> str:
    return dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC).isoformat(timespec="milliseconds")


@click.group(short_help="Create, list, show, change groups.")
def group() -> None:
    """Groups: named readers whose members share the records of streams. Each record is delivered to one of them, and again
    to another where that one fails.

    \b
    wayside group create billing 'orders/*' --retries 5 --dead-letter orders.dead
    wayside group show billing
    """


@group.command(short_help="Create a group, or give it other settings.")
@click.argument("name")
@click.argument("streams", nargs=-1, required=True, metavar="STREAM...")
@click.option(
    "--start", default="-1", show_default=True, help="Where to begin: -1, now, or an offset of the one stream."
)
@click.option("--lease", "lease_s", type=float, help="Seconds for which a member has a record. [default: 30]")
@click.option("--retries", type=int, help="Redeliveries after a failure; -1: no bound. [default: 5]")
@click.option(
    "--backoff", "backoff_s", type=float, help="Seconds before the first, doubled for each that follows. [default: 1]"
)
@click.option("--backoff-max", "backoff_s_max", type=float, help="The longest of these. [default: 300]")
@click.option("--dead-letter", help="Stream for records whose last attempt has failed.")
@click.option("--order-by", help="Field whose equal values are delivered one after the other; $key: the record's key.")
@click.option("--in-flight", "in_flight_max", type=int, help="Records under way at one time. [default: 10000]")
@click.option("--member-in-flight", "member_in_flight_max", type=int, help="The same, of one member.")
@click.option("--webhook", help="URL that deliveries are pushed to.")
@click.option("--webhook-concurrency", type=int, help="Pushes under way at one time. [default: 8]")
@click.option("--cloudevents", is_flag=True, default=None, help="Push CloudEvents.")
@click.option("--paused", is_flag=True, default=None, help="Deliver nothing until `wayside group resume`.")
@click.option("--description")
@hub_command
def create(client: RestClient, name: str, streams: tuple[str, ...], **options: Any) -> None:
    """Make the group NAME, which reads STREAM...: paths, or globs in which * is a segment, ** any number of them.

    A group that exists gets these settings, and those that are not given are the defaults again; it stays where it is.
    """
    settings = {option: value for option, value in options.items() if value is not None}
    answer = _answer(client, "PUT", name, body={"streams": list(streams), **settings})
    click.echo(f"{'created' if answer.status == 201 else 'set'} {name}")


@group.command("list", short_help="List groups.")
@click.argument("prefix", default="")
@json_option
@hub_command
def list_(client: RestClient, prefix: str, as_json: bool) -> None:
    """List the groups whose name begins with PREFIX."""
    after: str | None = ""
    found = 0
    while after is not None:
        page = _ask(client, "GET", "", prefix=prefix, after=after, limit=LIST_MAX)
        after = page["next"]
        for each in page["groups"]:
            found += 1
            _print_json(each) if as_json else click.echo(f"{each['name']}  {_figures(each)}")
    if not found:
        click.echo("wayside: there is no group: wayside group create NAME STREAM...", err=True)


def _figures(each: dict[str, Any]) -> str:
    members = each["members"] if isinstance(each["members"], int) else len(each["members"])
    lag = "?" if each["lag"] is None else each["lag"]
    streams = each.get("streams") if "settings" not in each else each["settings"]["streams"]
    text = (
        f"lag {lag}, {each['in_flight']} in flight, {each['waiting']} waiting, {each['dead']} dead, {members} members"
    )
    return f"{text}, {' '.join(streams or [])}{'  paused' if each['paused'] else ''}"


@group.command(short_help="Show a group.")
@click.argument("name")
@json_option
@hub_command
def show(client: RestClient, name: str, as_json: bool) -> None:
    """Show the settings, figures, members and streams of the group NAME."""
    found = _ask(client, "GET", name)
    if as_json:
        _print_json(found)
        return
    click.echo(f"{found['name']}  {_figures(found)}")
    if found["stuck"]:
        click.echo(f"stuck: {found['stuck']}")
    for title, values in (("settings", found["settings"]), ("counts", found["counts"])):
        shown = [f"{key} {_plain(value)}" for key, value in values.items() if value not in ("", False, None)]
        click.echo(f"{title}: {', '.join(shown)}")
    for member in found["members"]:
        state = f"connected, takes {member['credit']} more" if member["connected"] else "not connected"
        click.echo(f"member {member['name']}: {member['in_flight']} in flight, {state}")
    for stream in found["streams"]:
        rest = ", ".join(f"{stream.get(key, 0)} {text}" for key, text in _STATES)
        click.echo(f"stream {stream['stream']}: lag {stream['lag']}, {rest}")


_STATES = (("in_flight", "in flight"), ("waiting", "waiting"), ("parked", "parked"))


def _plain(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


@group.command(short_help="Delete a group.")
@click.argument("name")
@hub_command
def delete(client: RestClient, name: str) -> None:
    """Forget the group NAME and what it knows of records. The streams that it reads stay."""
    _ask(client, "DELETE", name)


@group.command(short_help="Deliver nothing more.")
@click.argument("name")
@hub_command
def pause(client: RestClient, name: str) -> None:
    """Deliver nothing more of the group NAME, until it is resumed. What members have they may still settle."""
    _ask(client, "POST", name, "pause")


@group.command(short_help="Deliver again.")
@click.argument("name")
@hub_command
def resume(client: RestClient, name: str) -> None:
    """Deliver again, after `wayside group pause`."""
    _ask(client, "POST", name, "resume")


@group.command(short_help="Read on from elsewhere.", context_settings={"ignore_unknown_options": True})  # -1
@click.argument("name")
@click.argument("to", metavar="-1|now|OFFSET")
@click.argument("streams", nargs=-1, metavar="[STREAM]...")
@hub_command
def seek(client: RestClient, name: str, to: str, streams: tuple[str, ...]) -> None:
    """Have the group NAME read its streams, or those that STREAM... matches, from their start (-1), their tail (now) or an
    OFFSET on. What is outstanding there is not any more, and attempts count anew. Prints the streams.

    \b
    wayside group seek billing -1
    wayside group seek billing now 'orders/eu/*'
    """
    for path in _ask(client, "POST", name, "seek", {"to": to, "streams": list(streams)})["streams"]:
        click.echo(path)


@group.command(short_help="List dead records.")
@click.argument("name")
@click.option("--stream", help="Only those of this path, or of those that a glob matches.")
@click.option("--limit", type=click.IntRange(1, LIST_MAX), default=100, show_default=True, help="At most so many.")
@json_option
@hub_command
def dead(client: RestClient, name: str, stream: str | None, limit: int, as_json: bool) -> None:
    """List the records that the group NAME has given up on, those that died last first."""
    found = _ask(client, "GET", name, "dead", stream=stream, limit=limit)
    for each in found["dead"]:
        if as_json:
            _print_json(each)
        else:
            where = each["dead_letter"]
            copy = f"  in {where['stream']} {where['offset']}" if where else ""
            text = f"{each['attempts']} attempts, {_time(each['died_ms'])}, {each['reason']}"
            click.echo(f"{each['stream']} {each['offset']}  {text}{copy}")
    if found["found"] > len(found["dead"]):
        click.echo(f"wayside: there are {found['found']}", err=True)
    elif not found["found"]:
        click.echo("wayside: there is no dead record", err=True)


@click.command(short_help="Tell what is known of one record in a group.")
@click.argument("group")
@click.argument("stream")
@click.argument("offset")
@json_option
@hub_command
def receipts(client: RestClient, group: str, stream: str, offset: str, as_json: bool) -> None:
    """Tell what is known of a record in GROUP: how often it was delivered, to whom and when, and what became of it.

    OFFSET is the one after the record, as `wayside publish` prints it.
    """
    found = _ask(client, "GET", group, "receipts", stream=stream, offset=offset)
    if as_json:
        _print_json(found)
        return
    attempts = "" if found["attempts"] is None else f", {found['attempts']} attempts"
    click.echo(f"{found['state']}{attempts}{_because(found)}")
    if found.get("appended_ms"):
        click.echo(f"{_time(found['appended_ms'])}  appended to {stream}")
    for delivery in found["deliveries"]:
        click.echo(f"{_time(delivery['time_ms'])}  delivered to {delivery['member']}, lease {delivery['lease']}")
        if delivery.get("ended"):
            click.echo(f"{_time(delivery['ended_ms'])}  {delivery['ended']}{_because(delivery)}")
    if found.get("dead_letter"):
        click.echo(f"in {found['dead_letter']['stream']} {found['dead_letter']['offset']}")
    if found.get("detail"):
        click.echo(found["detail"])


def _because(of: dict[str, Any]) -> str:
    return f": {of['reason']}" if of.get("reason") else ""


@click.command(short_help="Deliver dead records again.")
@click.argument("group")
@click.option("--stream", "streams", multiple=True, help="Only those of this path, or of those that a glob matches.")
@click.option(
    "--offset", "offsets", multiple=True, help="Only that one: the offset after it, as `group dead` prints it."
)
@click.option("--reason", help="Only those whose reason has this text in it.")
@click.option("--max", "most", type=click.IntRange(min=1), help="At most so many, the oldest first.")
@hub_command
def redrive(
    client: RestClient,
    group: str,
    streams: tuple[str, ...],
    offsets: tuple[str, ...],
    reason: str | None,
    most: int | None,
) -> None:
    """Deliver the dead records of GROUP again, as if for the first time. Prints how many."""
    wanted = {"streams": list(streams), "offsets": list(offsets), "reason": reason, "max": most}
    chosen = {name: value for name, value in wanted.items() if value}
    click.echo(_ask(client, "POST", group, "redrive", chosen)["redriven"])


COMMANDS = (group, receipts, redrive)
